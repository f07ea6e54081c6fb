//! A verb called by another program in its own process: what it would print is given back, and it is told from outside to stop.

use std::cell::RefCell;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser as _;

use super::{Cli, Host};
use crate::data::decode::range::take_notice;
use crate::{Error, Result};

thread_local! {
    /// The call that this thread is in: a verb prints and listens on the thread that it is called on.
    static CALL: RefCell<Option<Call>> = const { RefCell::new(None) };
}

/// A call in progress.
struct Call {
    said: String,
    stop: Arc<AtomicBool>,
}

/// Runs the command line `args` as [`super::run`] does, but gives what it would print, or the error that it would end with;
/// nothing of either is printed, and no log is started. A `train` or `distill` ends after a step once `stop` is set. May not
/// be called within a call.
///
/// # Errors
/// Arguments that the command refuses, and whatever the verb ends with.
pub fn call<I>(args: I, stop: Arc<AtomicBool>) -> Result<String>
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    let cli = Cli::try_parse_from(args).map_err(|error| {
        let text = error.to_string();
        let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
        let line = lines.collect::<Vec<_>>().join(" ");
        Error::input("arguments", line.trim_start_matches("error: "))
    })?;
    CALL.set(Some(Call {
        said: String::new(),
        stop,
    }));
    let done = cli.verb.run(Host::Other);
    let said = CALL.take().map_or_else(String::new, |call| call.said);
    if let Some(notice) = take_notice() {
        tracing::warn!("{notice}");
    }
    done.map(|()| said)
}

/// Takes a line that would be printed; false outside a call.
pub(super) fn takes(line: &str) -> bool {
    CALL.with_borrow_mut(|call| {
        let Some(call) = call else { return false };
        call.said.push_str(line);
        call.said.push('\n');
        true
    })
}

/// The flag by which the caller says that the verb is to stop; a new one outside a call.
pub(super) fn stop_flag() -> Arc<AtomicBool> {
    CALL.with_borrow(|call| {
        call.as_ref()
            .map_or_else(Arc::default, |call| Arc::clone(&call.stop))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_gives_what_it_would_print_and_leaves_nothing() {
        let said = call(["macula", "completions", "bash"], Arc::default());
        assert!(said.is_ok_and(|said| said.contains("_macula")));
        assert!(!takes("a line"));
        let refused = call(["macula", "inspect", "--no-such-flag"], Arc::default()).unwrap_err();
        assert!(refused.to_string().contains("--no-such-flag"), "{refused}");
        assert_eq!(refused.exit_code(), 2);
        let missing = call(["macula", "inspect", "no/such/file"], Arc::default()).unwrap_err();
        assert!(missing.to_string().contains("no/such/file"), "{missing}");
        assert!(!takes("a line"));
    }

    #[test]
    fn a_verb_listens_to_the_flag_of_its_call() {
        let stop = Arc::new(AtomicBool::new(false));
        CALL.set(Some(Call {
            said: String::new(),
            stop: Arc::clone(&stop),
        }));
        let heard = stop_flag();
        CALL.set(None);
        assert!(Arc::ptr_eq(&heard, &stop));
        assert!(!Arc::ptr_eq(&stop_flag(), &stop));
    }
}
