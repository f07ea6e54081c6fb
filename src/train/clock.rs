//! How long the parts of a step take.

use std::time::Instant;

use candle_core::Device;

use crate::Result;

/// Seconds as this thread sees them or, of parts taken apart, until a device has done what they asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    /// Waited for at the end of every part.
    device: Option<Device>,
}

impl Clock {
    /// Waits for `device` at the end of every part, so that each has its own time; the whole takes a little longer.
    pub(super) fn apart(device: &Device) -> Self {
        Self {
            device: Some(device.clone()),
        }
    }

    /// Seconds since `start`.
    ///
    /// # Errors
    /// A device that failed.
    pub(super) fn since(&self, start: Instant) -> Result<f64> {
        if let Some(device) = &self.device {
            device.synchronize()?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}
