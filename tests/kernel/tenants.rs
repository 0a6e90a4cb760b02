//! What a tenant does to us and to others, on the running kernel: processes, namespaces, cgroups and sockets as a pod
//! can make them, mostly of uid 65534. Beside each stands a victim whose series and alert must stay.

mod open_files;
