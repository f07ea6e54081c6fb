//! Panics of other people's code that are answered with an error: caught, and nothing of them printed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is ours to report.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread; its panic is returned, not printed. What it changes must not be looked at after a panic.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            // A thread that is ending has no such value any more, and runs no such code.
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                loud(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_returned_and_the_thread_is_loud_again() {
        assert_eq!(quietly(|| 7).unwrap(), 7);
        let nested = quietly(|| {
            assert!(quietly(|| panic!("inside")).is_err());
            assert!(QUIET.get());
        });
        assert!(nested.is_ok());
        assert!(!QUIET.get());
        let said = quietly(|| panic!("given up")).unwrap_err();
        assert_eq!(said.downcast_ref::<&str>(), Some(&"given up"));
    }
}
