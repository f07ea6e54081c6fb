//! How far a run is: a progress bar on a terminal, and a plain line now and then where stderr is no terminal.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// How often a plain line is written.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// What is shown of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStatus {
    /// The step that was just done, from 1.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
    /// Images seen a second.
    pub images_per_second: f64,
    /// The last top-1 accuracy of online k-NN, 0 to 1, where it has run.
    pub knn: Option<f64>,
}

impl StepStatus {
    fn message(&self) -> String {
        let mut text = format!("loss {:.4}, {:.0} images/s", self.loss, self.images_per_second);
        if let Some(knn) = self.knn {
            text.push_str(&format!(", k-NN {:.1} %", 100.0 * knn));
        }
        text
    }
}

/// The progress of one run.
#[derive(Debug)]
pub struct RunProgress {
    bar: ProgressBar,
    plain: Option<PlainLines>,
}

impl RunProgress {
    /// Progress of a run of `total` steps of which `done` are done already.
    pub fn new(total: u64, done: u64) -> Self {
        let style = "{bar:24} step {pos}/{len} {msg}, {eta} left";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total).with_style(style).with_position(done);
        bar.reset_eta();
        let plain = bar
            .is_hidden()
            .then(|| PlainLines::new(total, done, Instant::now()));
        Self { bar, plain }
    }

    /// Shows a step.
    pub fn update(&mut self, status: &StepStatus) {
        self.bar.set_position(status.step);
        match &mut self.plain {
            None => self.bar.set_message(status.message()),
            Some(plain) => {
                if let Some(line) = plain.line(status, Instant::now()) {
                    tracing::info!("{line}");
                }
            }
        }
    }

    /// Takes the bar away while `print` writes to the terminal.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Ends the bar of a run that is done and takes it away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Leaves the bar as it stands, for a run that stopped early.
    pub fn abandon(&self) {
        self.bar.abandon();
    }
}

/// Decides when a plain line is due and words it. Times are given, so that it can be tested.
#[derive(Debug)]
struct PlainLines {
    total: u64,
    first_step: u64,
    started: Instant,
    last: Option<Instant>,
}

impl PlainLines {
    fn new(total: u64, done: u64, now: Instant) -> Self {
        Self {
            total,
            first_step: done,
            started: now,
            last: None,
        }
    }

    /// The line for `status`: for the first step, every [`PLAIN_EVERY`], and for the last step.
    fn line(&mut self, status: &StepStatus, now: Instant) -> Option<String> {
        let due = self
            .last
            .is_none_or(|last| now.duration_since(last) >= PLAIN_EVERY);
        if !due && status.step < self.total {
            return None;
        }
        self.last = Some(now);
        let mut line = format!("step {}/{}: {}", status.step, self.total, status.message());
        if let Some(left) = self.left(status.step, now) {
            line.push_str(&format!(", {} left", HumanDuration(left)));
        }
        Some(line)
    }

    /// Time left at the pace so far.
    fn left(&self, step: u64, now: Instant) -> Option<Duration> {
        let done = step.checked_sub(self.first_step).filter(|&done| done > 0)?;
        let left = self.total.checked_sub(step).filter(|&left| left > 0)?;
        let seconds = now.duration_since(self.started).as_secs_f64() * left as f64 / done as f64;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(step: u64) -> StepStatus {
        StepStatus {
            step,
            loss: 7.25,
            images_per_second: 123.4,
            knn: None,
        }
    }

    #[test]
    fn plain_lines_are_rare_and_say_what_is_left() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut plain = PlainLines::new(1_000, 100, start);
        let first = plain.line(&status(101), at(1)).expect("the first step");
        assert!(
            first.starts_with("step 101/1000: loss 7.2500, 123 images/s"),
            "{first}"
        );
        assert_eq!(plain.line(&status(120), at(20)), None);
        // 45 steps of 900 in 60 s: 19 minutes for the rest.
        let later = plain.line(&status(145), at(60)).expect("30 s later");
        assert!(later.ends_with("19 minutes left"), "{later}");
        assert_eq!(plain.line(&status(146), at(89)), None);
        let last = plain.line(&status(1_000), at(89)).expect("the last step");
        assert!(!last.contains("left"), "{last}");
    }

    #[test]
    fn knn_is_shown_once_known() {
        let known = StepStatus {
            knn: Some(0.8125),
            ..status(1)
        };
        assert_eq!(known.message(), "loss 7.2500, 123 images/s, k-NN 81.2 %");
        assert_eq!(status(1).message(), "loss 7.2500, 123 images/s");
    }

    #[test]
    fn the_bar_follows_the_steps() {
        let mut progress = RunProgress::new(50, 10);
        assert_eq!(progress.bar.position(), 10);
        progress.update(&status(11));
        assert_eq!(progress.bar.position(), 11);
        assert_eq!(progress.bar.length(), Some(50));
        assert_eq!(progress.suspend(|| 7), 7);
        progress.finish();
    }
}
