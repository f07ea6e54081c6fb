//! What is said on stderr, and other programs' messages made short enough to be part of ours.

use crate::error;

/// Says one line about what is going on, on stderr: results alone go to stdout.
pub(super) fn say(line: &str) {
    eprintln!("{line}");
}

/// Letters of another program's message that are repeated.
const LONGEST: usize = 300;

/// `text` as one line of at most about 300 characters: other programs' messages may span many lines.
pub(super) fn one_line(text: &str) -> String {
    error::one_line(text, LONGEST)
}

/// ONNX Runtime's message in one line, without the file it was compiled from and the path we name ourselves.
pub(super) fn short_reason(message: &str) -> String {
    let mut text = error::one_line(message, usize::MAX);
    if text.starts_with("Load model from ")
        && let Some((_, reason)) = text.split_once(" failed:")
    {
        text = reason.to_owned();
    }
    // "[ONNXRuntimeError] : 1 : FAIL : reason" follows the name of a C++ function.
    if let Some((_, coded)) = text.split_once("[ONNXRuntimeError] : ") {
        text = coded.splitn(3, " : ").last().unwrap_or(coded).to_owned();
    }
    if text.contains("Protobuf parsing failed") {
        return "not an ONNX file, or a truncated one (its protobuf cannot be parsed)".to_owned();
    }
    if let Some(file) = absent_weights(&text) {
        return format!("its weights are in a second file that cannot be read: {file}");
    }
    let from_source =
        |word: &str| word.contains("onnxruntime/core/") || word.contains(".cc:") || word.contains(".h:");
    let words: Vec<&str> = text.split(' ').filter(|word| !from_source(word)).collect();
    one_line(&words.join(" "))
}

/// The file with external data whose absence `message` is about, as the versions since 1.24 word it.
fn absent_weights(message: &str) -> Option<&str> {
    let between = |open: char, close: char| {
        let from = message.rfind("External data path does not exist").unwrap_or(0);
        let start = message[from..].find(open)? + from + 1;
        let end = message[start..].find(close)? + start;
        Some(&message[start..end])
    };
    if message.contains("External data path does not exist") {
        between('"', '"')
    } else if message.contains("cannot get file size") {
        between('[', ']')
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_other_programs_become_one_short_line() {
        assert_eq!(one_line("  a\n\tb \n c"), "a b c");
        let long = one_line(&"é".repeat(1000));
        assert!(long.ends_with(" ..."));
        assert_eq!(long.chars().count(), 304);
    }

    #[test]
    fn the_runtime_s_own_messages_are_one_line() {
        let older = "Exception during initialization: filesystem error: cannot get file size: No such file or directory \
                     [weights/w.bin]";
        assert_eq!(
            short_reason(older),
            "its weights are in a second file that cannot be read: weights/w.bin"
        );
        let located =
            "Exception during initialization: /onnxruntime_src/onnxruntime/core/graph/graph.cc:120 bad\nnode";
        assert_eq!(short_reason(located), "Exception during initialization: bad node");
        let coded =
            "onnxruntime::Provider& Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library a : b";
        assert_eq!(short_reason(coded), "Failed to load library a : b");
        assert_eq!(
            short_reason("Load model from m.onnx failed:This is an invalid model."),
            "This is an invalid model."
        );
    }
}
