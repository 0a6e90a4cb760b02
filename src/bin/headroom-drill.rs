//! Makes a failure on purpose, to test one's paging: see `headroom::drill` and docs/drill.md.

fn main() -> std::process::ExitCode {
    headroom::drill::main()
}
