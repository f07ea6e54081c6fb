//! The order of a lane to an NVIDIA GPU: what its page-locked memory, its memory on the GPU and two streams may do and when. What
//! those are is a driver's ([`Streams`]: `pinned`, and a stand-in of the tests whose streams work as late or as early as they may).
//!
//! Three things use the memory of a lane, and events keep them apart. The feed's thread writes page-locked memory only when the last
//! copy from it is over (the host waits). The copying stream writes the GPU's memory only when the step before has read it
//! (`released`). The computing stream reads only what has been copied (`copied`). The memory on the GPU is the lane's own for good
//! and only views of it are handed out, so that no pool gives it to anybody else between these three.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use super::Lane;
use super::load::{DeviceBatch, Load, Piece};

/// Bytes at whose multiples pieces begin.
const ALIGNMENT: usize = 256;

/// The streams of a lane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stream {
    /// The one that everything of the device is computed on.
    Computing,
    /// The one that only copies.
    Copying,
}

/// What a lane asks of a driver. Whatever is asked of a stream comes after what was asked of it before, and else at any time.
pub(super) trait Streams: Send + Sync {
    /// Page-locked memory.
    type Host: Send + Sync;
    /// A point of a stream, once it has been recorded; until then nothing waits for it.
    type Event: Send + Sync;

    /// Page-locked memory of so many bytes, of any value.
    fn page_locked(&self, bytes: usize) -> Result<Self::Host>;

    /// The length of `host` in bytes.
    fn length(&self, host: &Self::Host) -> usize;

    /// Writes `piece` to `host`, from byte `start`, at once.
    fn write(&self, host: &mut Self::Host, start: usize, piece: &Piece) -> Result<()>;

    /// A flat tensor that is there when the computing stream has come to it.
    fn place(&self, count: usize, dtype: DType) -> Result<Tensor>;

    /// An event that nothing has recorded.
    fn event(&self) -> Result<Self::Event>;

    /// Lets `event` be the point at which `stream` is asked for nothing more yet.
    fn record(&self, event: &Self::Event, stream: Stream) -> Result<()>;

    /// Lets `stream` wait for the last record of `event`.
    fn wait(&self, stream: Stream, event: &Self::Event) -> Result<()>;

    /// Waits for the last record of `event`.
    fn wait_here(&self, event: &Self::Event) -> Result<()>;

    /// Lets the copying stream wait for all that the computing one has been asked for.
    fn join(&self) -> Result<()>;

    /// Asks the copying stream to copy bytes of `host` to the front of `place`.
    ///
    /// # Safety
    /// `place` is on the GPU, flat and not shorter; until the copy is over neither it nor `host` is given back, `host` is not
    /// written, and nothing else reads or writes `place`.
    #[allow(unsafe_code)]
    unsafe fn copy(&self, host: &Self::Host, bytes: Range<usize>, place: &Tensor) -> Result<()>;

    /// Waits for all that the copying stream has been asked for.
    fn finish(&self);
}

/// A lane, and where the batch that goes through it lies.
pub(super) struct StagedLane<S: Streams> {
    streams: S,
    /// All pieces of a batch, one after the other.
    host: Option<S::Host>,
    /// A flat tensor for each piece, not shorter than it.
    places: Vec<Tensor>,
    /// The end of the latest copy.
    copied: S::Event,
    /// The end of what reads the latest batch.
    released: S::Event,
}

impl<S: Streams> StagedLane<S> {
    pub(super) fn new(streams: S) -> Result<Self> {
        Ok(Self {
            copied: streams.event()?,
            released: streams.event()?,
            streams,
            host: None,
            places: Vec::new(),
        })
    }

    /// Sees to it that memory on both sides is large enough for `pieces`, which take `bytes` on the host. Only while it grows,
    /// which is over after a few batches, do the streams wait for one another here.
    fn make_room(&mut self, pieces: &[Piece], bytes: usize) -> Result<()> {
        let streams = &self.streams;
        if self.host.as_ref().is_none_or(|host| streams.length(host) < bytes) {
            // The old memory goes first.
            self.host = None;
            self.host = Some(streams.page_locked(with_headroom(bytes))?);
        }
        self.places.truncate(pieces.len());
        let mut grown = false;
        for (number, piece) in pieces.iter().enumerate() {
            let fits = |place: &Tensor| place.dtype() == piece.dtype() && place.elem_count() >= piece.len();
            if self.places.get(number).is_some_and(fits) {
                continue;
            }
            // What an old place holds has been read: it goes back to the pool in the order of the computing stream, like every tensor.
            let place = streams.place(with_headroom(piece.len()), piece.dtype())?;
            match self.places.get_mut(number) {
                Some(old) => *old = place,
                None => self.places.push(place),
            }
            grown = true;
        }
        if grown {
            streams.join()?;
        }
        Ok(())
    }
}

impl<S: Streams> Lane for StagedLane<S> {
    fn send(&mut self, load: &Load) -> Result<DeviceBatch> {
        let mut ranges = Vec::with_capacity(load.pieces.len());
        let mut end = 0;
        for piece in &load.pieces {
            ranges.push(end..end + piece.bytes());
            end = (end + piece.bytes()).next_multiple_of(ALIGNMENT);
        }
        // The last copy is over before its page-locked memory is written or given back.
        self.streams.wait_here(&self.copied)?;
        self.make_room(&load.pieces, end)?;
        let Some(host) = &mut self.host else {
            bail!("feed: expected page-locked memory, found none")
        };
        for (piece, range) in load.pieces.iter().zip(&ranges) {
            self.streams.write(host, range.start, piece)?;
        }
        self.streams.wait(Stream::Copying, &self.released)?;
        for (place, range) in self.places.iter().zip(ranges) {
            // SAFETY: the piece goes to a tensor of the lane that is at least as long and of its type (`make_room`). No kernel reads
            // that meanwhile: those of the batch before are over when `released`, for which the copying stream has just been told
            // to wait, and those of this batch come after `copied`. Neither the tensor nor the page-locked memory is written
            // or given back before the host has waited for `copied`: above, and in `Drop`.
            #[allow(unsafe_code)]
            unsafe {
                self.streams.copy(host, range, place)?;
            }
        }
        self.streams.record(&self.copied, Stream::Copying)?;
        let views = self.places.iter().zip(&load.pieces);
        let views: Result<_> = views
            .map(|(place, piece)| place.narrow(0, 0, piece.len()))
            .collect();
        Ok(load.arrived(views?))
    }

    fn arrived(&self) -> Result<()> {
        // By the host, so that a copy that no step has hidden shows as waiting for data. By the stream, so that the order of
        // its work does not hang on what the host does.
        self.streams.wait_here(&self.copied)?;
        self.streams.wait(Stream::Computing, &self.copied)
    }

    fn release(&mut self) -> Result<()> {
        self.streams.record(&self.released, Stream::Computing)
    }
}

impl<S: Streams> Drop for StagedLane<S> {
    /// Waits for all copies, also those that a failure has kept from being recorded, before the memory on both sides goes.
    fn drop(&mut self) {
        self.streams.finish();
    }
}

/// More than is needed now, since images differ in size. Never nothing, which cannot be had.
fn with_headroom(length: usize) -> usize {
    (length + length / 4).max(1)
}
