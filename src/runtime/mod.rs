//! ONNX Runtime: where its library is found or fetched ([`locate`], [`provision`], [`wheels`], [`cache`]), the one
//! environment of the process ([`environment`]), the execution providers ([`providers`]), models ([`session`]) and the
//! account of all that for a user ([`doctor`]).
//!
//! The library is loaded when it is first needed, never linked: building needs no network and no C++. Nothing here
//! knows about images or feature folders; a model takes a batch `[B, C, H, W]` and gives its outputs by name.

pub mod cache;
pub mod doctor;
pub mod environment;
pub mod locate;
pub mod manifest;
pub mod pip;
pub mod providers;
pub mod provision;
pub mod session;
pub mod tensors;
pub mod wheels;

pub use doctor::DoctorReport;
pub use environment::{Runtime, RuntimeOptions};
pub use locate::{Library, Origin};
pub use providers::{Device, OpenVinoPrecision};
pub use provision::install;
pub use session::{OnnxModel, SessionOptions};
pub use tensors::{Dim, OutputTensor, OutputView, TensorInfo};
pub use wheels::Flavor;

/// Says one line about what is going on, on stderr: results alone go to stdout.
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// `text` as one line of at most about 300 characters: other programs' messages may span many lines.
pub(crate) fn one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match joined.char_indices().nth(LONGEST) {
        None => joined,
        Some((end, _)) => format!("{} ...", joined[..end].trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn messages_of_other_programs_become_one_short_line() {
        assert_eq!(one_line("  a\n\tb \n c"), "a b c");
        let long = one_line(&"é".repeat(1000));
        assert!(long.ends_with(" ..."));
        assert_eq!(long.chars().count(), 304);
    }
}
