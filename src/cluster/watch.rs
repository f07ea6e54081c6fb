//! Processes must not outlive their launcher. Most launchers see to that themselves, but one that is killed cannot, and the processes
//! that it leaves would train on, or wait for each other for ever.

use std::io::Write as _;
use std::os::unix::process::parent_id;
use std::thread;
use std::time::Duration;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// From here on ends this process, without ceremony, once the one that started it has gone.
pub(super) fn end_with_the_launcher() {
    let launcher = parent_id();
    let watch = move || {
        while parent_id() == launcher {
            thread::sleep(EVERY);
        }
        // Whoever read this may have gone as well.
        let _ = writeln!(
            std::io::stderr(),
            "error: what started this process has ended, and so does it"
        );
        // Not the usual exit: the MPI library's own words at the end wait for the others.
        signal_hook::low_level::exit(1)
    };
    // Without the thread a process still ends with the next call that finds the others gone.
    let _ = thread::Builder::new().name("launcher".to_owned()).spawn(watch);
}
