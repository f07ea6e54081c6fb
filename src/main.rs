//! The `macula` command.

/// A training step frees and asks again for the same large buffers; the C library's allocator gives them back to the system
/// in between, and every page of them faults anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    macula::memory::keep_freed();
    // candle splits large elementwise operations among threads of its own, however many `--threads` asks for, and between
    // operations these wait in a busy loop that slows everything else down. What is worth splitting, macula splits itself.
    unless_said("CANDLE_NUM_THREADS", "1");
    // ONNX Runtime's own builds write a number for this machine and what was run on it into the user's cache, and send that to
    // their makers.
    unless_said("ORT_DISABLE_TELEMETRY", "1");
    macula::cli::main()
}

/// Sets a variable of the environment that the user has not set.
fn unless_said(variable: &str, value: &str) {
    if std::env::var_os(variable).is_none() {
        // SAFETY: these are the program's first acts, so no other thread can be reading the environment.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(variable, value);
        }
    }
}
