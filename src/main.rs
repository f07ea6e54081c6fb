//! The `macula` command.

/// A training step frees and asks again for the same large buffers; the C library's allocator gives them back to the system
/// in between, and every page of them faults anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    macula::memory::keep_freed();
    keep_candle_on_one_thread();
    macula::cli::main()
}

/// candle splits large elementwise operations among threads of its own, however many `--threads` asks for, and between
/// operations these wait in a busy loop that slows everything else down. What is worth splitting, macula splits itself.
fn keep_candle_on_one_thread() {
    const VARIABLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: this is the program's first act, so no other thread can be reading the environment.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(VARIABLE, "1");
        }
    }
}
