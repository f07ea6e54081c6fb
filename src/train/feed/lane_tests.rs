//! A lane against a stand-in for the driver: two streams of the processor that work as late as they may, as early, or in between, and
//! that say when something is used that has been given back. What arrives must be right in every order, and must not be where a wait
//! is left out.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor};

use super::Lane;
use super::lane::{StagedLane, Stream, Streams};
use super::load::{Load, Piece};
use crate::data::augment::{MultiCrop, MultiCropConfig};
use crate::data::loader::Batch;

/// When a stream does what it may do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pace {
    /// Only while somebody waits for it, and no more than that.
    Late,
    /// At once.
    Early,
    /// Now and then, by this seed.
    Between(u64),
}

/// A wait that is left out.
#[derive(Debug, Clone, Copy, PartialEq)]
enum LeftOut {
    Nothing,
    /// Of the host for copies.
    Host,
    /// Of the copying stream for the step before.
    Copying,
    /// Of both host and computing stream for copies: each of them is enough for what a step reads.
    Arrival,
    /// Of the copying stream for new memory.
    Join,
    /// Of the end of a lane for its copies.
    Finish,
}

/// Page-locked memory.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    is_given_back: AtomicBool,
}

struct Host(Arc<Memory>);

impl Drop for Host {
    fn drop(&mut self) {
        self.0.is_given_back.store(true, Ordering::Relaxed);
    }
}

/// What a stream is asked for.
enum Work {
    Zero(Tensor),
    Copy(Arc<Memory>, Range<usize>, Tensor),
    /// A step that reads a batch.
    Read(Vec<Tensor>, usize),
    Record(usize),
    Wait(usize),
}

#[derive(Default)]
struct State {
    queues: [VecDeque<Work>; 2],
    /// Which records have been reached, and the last record of each event.
    reached: Vec<bool>,
    events: Vec<Option<usize>>,
    /// What steps have read.
    read: Vec<Option<Vec<Vec<f64>>>>,
    faults: Vec<&'static str>,
    random: u64,
}

#[derive(Clone)]
struct StandIn {
    state: Arc<Mutex<State>>,
    pace: Pace,
    left_out: LeftOut,
}

/// Writes bytes over the front of a tensor.
struct Write<'a>(&'a [u8]);

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "stand-in"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let words = self.0.as_chunks::<4>().0.iter();
        match storage {
            CpuStorage::U8(values) => values[..self.0.len()].copy_from_slice(self.0),
            CpuStorage::U32(values) => {
                values
                    .iter_mut()
                    .zip(words)
                    .for_each(|(value, word)| *value = u32::from_ne_bytes(*word));
            }
            CpuStorage::F32(values) => {
                values
                    .iter_mut()
                    .zip(words)
                    .for_each(|(value, word)| *value = f32::from_ne_bytes(*word));
            }
            _ => candle_core::bail!("a type that no batch has"),
        }
        Ok(())
    }
}

impl State {
    /// Does the next work of a stream, if there is some that need not wait.
    fn advance(&mut self, stream: usize) -> bool {
        match self.queues[stream].front() {
            None => return false,
            Some(Work::Wait(record)) if !self.reached[*record] => return false,
            Some(_) => {}
        }
        match self.queues[stream].pop_front().unwrap() {
            Work::Zero(place) => place.zero_set().unwrap(),
            Work::Copy(memory, bytes, place) => {
                if memory.is_given_back.load(Ordering::Relaxed) {
                    self.faults
                        .push("memory was copied from after it had been given back");
                }
                place
                    .inplace_op1(&Write(&memory.bytes.lock().unwrap()[bytes]))
                    .unwrap();
            }
            Work::Read(tensors, step) => {
                let values = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
                self.read[step] = Some(tensors.iter().map(values).collect());
            }
            Work::Record(record) => self.reached[record] = true,
            Work::Wait(_) => {}
        }
        true
    }

    /// Does what has to be done until `record` is reached, and nothing else.
    fn reach(&mut self, record: usize) {
        let is_here = |work: &Work| matches!(work, Work::Record(other) if *other == record);
        while !self.reached[record] {
            let stream = (0..2)
                .find(|&stream| self.queues[stream].iter().any(is_here))
                .unwrap();
            if let Some(&Work::Wait(before)) = self.queues[stream].front() {
                self.reach(before);
            }
            self.advance(stream);
        }
    }

    fn record(&mut self, stream: usize) -> usize {
        self.reached.push(false);
        let record = self.reached.len() - 1;
        self.queues[stream].push_back(Work::Record(record));
        record
    }
}

impl StandIn {
    fn new(pace: Pace, left_out: LeftOut) -> Self {
        Self {
            state: Arc::default(),
            pace,
            left_out,
        }
    }

    /// Asks for something, after which the streams may do some of what they have been asked for.
    fn ask<R>(&self, ask: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().unwrap();
        let requested = ask(&mut state);
        match self.pace {
            Pace::Late => {}
            Pace::Early => while state.advance(0) || state.advance(1) {},
            Pace::Between(seed) => {
                let mut next = || {
                    state.random = (state.random ^ seed)
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    (state.random >> 40) as usize
                };
                let moves: Vec<usize> = (0..next() % 4).map(|_| next() % 2).collect();
                for stream in moves {
                    state.advance(stream);
                }
            }
        }
        requested
    }

    fn is_left_out(&self, waits: &[LeftOut]) -> bool {
        waits.contains(&self.left_out)
    }
}

impl Streams for StandIn {
    type Host = Host;
    type Event = usize;

    fn page_locked(&self, bytes: usize) -> Result<Host> {
        Ok(Host(Arc::new(Memory {
            bytes: Mutex::new(vec![0xee; bytes]),
            is_given_back: AtomicBool::new(false),
        })))
    }

    fn length(&self, host: &Host) -> usize {
        host.0.bytes.lock().unwrap().len()
    }

    fn write(&self, host: &mut Host, start: usize, piece: &Piece) -> Result<()> {
        let end = start + piece.bytes();
        let mut state = self.state.lock().unwrap();
        let is_pending = state.queues.iter().flatten().any(|work| match work {
            Work::Copy(memory, bytes, _) => {
                Arc::ptr_eq(memory, &host.0) && bytes.start < end && start < bytes.end
            }
            _ => false,
        });
        if is_pending {
            state
                .faults
                .push("memory was written before it had been copied from");
        }
        piece.write(&mut host.0.bytes.lock().unwrap()[start..end]);
        Ok(())
    }

    fn place(&self, count: usize, dtype: DType) -> Result<Tensor> {
        let place = Tensor::ones(count, dtype, &Device::Cpu)?;
        self.ask(|state| state.queues[Stream::Computing as usize].push_back(Work::Zero(place.clone())));
        Ok(place)
    }

    fn event(&self) -> Result<usize> {
        let mut state = self.state.lock().unwrap();
        state.events.push(None);
        Ok(state.events.len() - 1)
    }

    fn record(&self, event: &usize, stream: Stream) -> Result<()> {
        self.ask(|state| {
            let record = state.record(stream as usize);
            state.events[*event] = Some(record);
        });
        Ok(())
    }

    fn wait(&self, stream: Stream, event: &usize) -> Result<()> {
        let left_out = match stream {
            Stream::Copying => LeftOut::Copying,
            Stream::Computing => LeftOut::Arrival,
        };
        if !self.is_left_out(&[left_out]) {
            self.ask(|state| {
                let record = state.events[*event];
                state.queues[stream as usize].extend(record.map(Work::Wait));
            });
        }
        Ok(())
    }

    fn wait_here(&self, event: &usize) -> Result<()> {
        if !self.is_left_out(&[LeftOut::Host, LeftOut::Arrival]) {
            self.ask(|state| {
                if let Some(record) = state.events[*event] {
                    state.reach(record);
                }
            });
        }
        Ok(())
    }

    fn join(&self) -> Result<()> {
        if !self.is_left_out(&[LeftOut::Join]) {
            self.ask(|state| {
                let record = state.record(Stream::Computing as usize);
                state.queues[Stream::Copying as usize].push_back(Work::Wait(record));
            });
        }
        Ok(())
    }

    #[allow(unsafe_code)]
    unsafe fn copy(&self, host: &Host, bytes: Range<usize>, place: &Tensor) -> Result<()> {
        let copy = Work::Copy(Arc::clone(&host.0), bytes, place.clone());
        self.ask(|state| state.queues[Stream::Copying as usize].push_back(copy));
        Ok(())
    }

    fn finish(&self) {
        if !self.is_left_out(&[LeftOut::Finish]) {
            self.ask(|state| {
                let record = state.record(Stream::Copying as usize);
                state.reach(record);
            });
        }
    }
}

/// A batch of noise, of another size than the one before.
fn batch(step: usize) -> Batch {
    let size = [3, 1, 4, 4, 6, 2][step % 6];
    let config = MultiCropConfig::small_grey(8, 4);
    let values = |count: usize| {
        (0..count)
            .map(|place| (1000 * (step + 1) + place) as f32)
            .collect()
    };
    Batch {
        size,
        global: values(config.global.count * size * config.global.values(3)),
        local: values(config.local.count * size * config.local.values(3)),
        ..Batch::default()
    }
}

/// Twelve steps on two lanes, of which one is filled while the step before computes; then one more batch that no step takes. What
/// went wrong.
fn run(pace: Pace, left_out: LeftOut) -> Vec<String> {
    const STEPS: usize = 12;
    let driver = StandIn::new(pace, left_out);
    let crops = MultiCrop::new(MultiCropConfig::small_grey(8, 4)).unwrap();
    let mut lanes = [(); 2].map(|()| StagedLane::new(driver.clone()).unwrap());
    driver.state.lock().unwrap().read = (0..STEPS).map(|_| None).collect();
    let batches: Vec<Batch> = (0..=STEPS).map(batch).collect();
    let mut sent = lanes[0].send(&Load::new(&batches[0], &crops).unwrap()).unwrap();
    for step in 0..STEPS {
        let (lane, next) = (step % 2, (step + 1) % 2);
        lanes[lane].arrived().unwrap();
        let tensors = sent.tensors().to_vec();
        driver.ask(|state| state.queues[Stream::Computing as usize].push_back(Work::Read(tensors, step)));
        lanes[lane].release().unwrap();
        sent = lanes[next]
            .send(&Load::new(&batches[step + 1], &crops).unwrap())
            .unwrap();
    }
    drop(sent);
    drop(lanes);
    let mut state = driver.state.lock().unwrap();
    while state.advance(1) || state.advance(0) {}
    let mut wrong: Vec<String> = state.faults.iter().map(ToString::to_string).collect();
    for (step, (read, batch)) in state.read.iter().zip(&batches).enumerate() {
        let expected: Vec<Vec<f64>> = [&batch.global, &batch.local]
            .map(|values| values.iter().map(|&value| f64::from(value)).collect())
            .into();
        if read.as_ref() != Some(&expected) {
            wrong.push(format!("step {step} read another batch"));
        }
    }
    if state.queues.iter().any(|queue| !queue.is_empty()) {
        wrong.push("something was left over".into());
    }
    wrong
}

fn paces() -> impl Iterator<Item = Pace> {
    [Pace::Late, Pace::Early]
        .into_iter()
        .chain((1..40).map(Pace::Between))
}

#[test]
fn what_arrives_is_right_however_late_or_early_streams_work() {
    for pace in paces() {
        assert_eq!(run(pace, LeftOut::Nothing), Vec::<String>::new(), "{pace:?}");
    }
}

#[test]
fn without_a_wait_something_else_arrives() {
    for left_out in [
        LeftOut::Host,
        LeftOut::Copying,
        LeftOut::Arrival,
        LeftOut::Join,
        LeftOut::Finish,
    ] {
        let seen = paces().any(|pace| !run(pace, left_out).is_empty());
        assert!(seen, "nothing went wrong without {left_out:?}");
    }
}

/// Two batches of one size through one lane, of which the first is never taken.
fn replace(pace: Pace, left_out: LeftOut) -> Vec<&'static str> {
    let driver = StandIn::new(pace, left_out);
    let crops = MultiCrop::new(MultiCropConfig::small_grey(8, 4)).unwrap();
    let mut lane = StagedLane::new(driver.clone()).unwrap();
    for step in [0, 6] {
        lane.send(&Load::new(&batch(step), &crops).unwrap()).unwrap();
    }
    drop(lane);
    std::mem::take(&mut driver.state.lock().unwrap().faults)
}

#[test]
fn a_batch_that_no_step_takes_is_copied_before_the_next_is_written() {
    for pace in paces() {
        assert!(replace(pace, LeftOut::Nothing).is_empty(), "{pace:?}");
    }
    assert!(!replace(Pace::Late, LeftOut::Host).is_empty());
}
