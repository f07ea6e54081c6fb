//! The `macula` command.

fn main() -> std::process::ExitCode {
    macula::cli::main()
}
