//! The `luc` command.

fn main() -> std::process::ExitCode {
    luc_api::cli::main()
}
