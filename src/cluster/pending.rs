//! A sum over ranks that a device works on beside what it is asked for meanwhile.

use candle_core::{Result, Tensor};

/// What makes a device's own work wait for the sum.
type Arrive = Box<dyn FnOnce() -> Result<()>>;

/// A sum that is on its way. Until it is waited for nothing uses its values; one that is dropped is waited for, too.
pub struct PendingSum {
    values: Tensor,
    arrive: Option<Arrive>,
}

impl PendingSum {
    /// One that has arrived.
    pub fn here(values: Tensor) -> Self {
        Self { values, arrive: None }
    }

    /// One that has arrived in `values` for whatever is asked of their device after `arrive`.
    pub fn on_its_way(values: Tensor, arrive: Arrive) -> Self {
        Self {
            values,
            arrive: Some(arrive),
        }
    }

    /// The sum.
    ///
    /// # Errors
    /// A device that does not answer.
    pub fn wait(mut self) -> Result<Tensor> {
        if let Some(arrive) = self.arrive.take() {
            arrive()?;
        }
        Ok(self.values.clone())
    }
}

impl Drop for PendingSum {
    fn drop(&mut self) {
        // Before the values: their memory may be given to others as soon as they are.
        if let Some(arrive) = self.arrive.take() {
            let _ = arrive();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use candle_core::Device;

    use super::*;

    #[test]
    fn a_sum_is_waited_for_once_whether_or_not_it_is_used() {
        for used in [true, false] {
            let waits = Rc::new(Cell::new(0));
            let count = Rc::clone(&waits);
            let values = Tensor::new(&[3f32], &Device::Cpu).unwrap();
            let arrive = move || {
                count.set(count.get() + 1);
                Ok(())
            };
            let sum = PendingSum::on_its_way(values, Box::new(arrive));
            assert_eq!(waits.get(), 0);
            match used {
                true => assert_eq!(sum.wait().unwrap().to_vec1::<f32>().unwrap(), [3.]),
                false => drop(sum),
            }
            assert_eq!(waits.get(), 1);
        }
    }
}
