//! What a tenant can do to us, and what becomes of it: each way with real processes, namespaces, cgroups and sockets,
//! of a user without rights where the kernel lets one, beside a victim whose series must stand throughout.

mod cgroups;
mod interfaces;
mod open_files;
mod shown;
mod stall;
mod volumes;

/// Of a user that owns nothing.
const NOBODY: u32 = 65534;
