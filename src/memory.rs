//! Memory that was freed and is asked for again at once: a step and a batch do that with the same large buffers, each of which
//! would be given back to the system in between, and every page of it fault anew and be cleared.

/// Keeps what was freed for a minute instead of a tenth of a second, which is less than a step takes. `MIMALLOC_PURGE_DELAY`
/// overrules it. For programs whose global allocator is `mimalloc`, as the command's and the Python module's; to be called
/// before there are other threads of macula.
pub fn keep_freed() {
    /// `mi_option_purge_delay`, which the bindings have no name for, in milliseconds.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: nothing reads options while they are set; a number as any other for this option.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, 60_000);
    }
}

/// Gives what is free back to the system now: for a program that has done its work and stays.
pub fn give_back() {
    // SAFETY: may be called at any time from any thread.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}
