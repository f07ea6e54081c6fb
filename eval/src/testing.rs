//! What the reference's own code found (`tests/fixtures/make_reference.py`), for the tests of this package.

use serde_json::Value;

/// A part of `reference.expected.json`.
pub(crate) struct Expected(Value);

/// The part called `name`.
pub(crate) fn reference(name: &str) -> Expected {
    let text = include_str!("../tests/fixtures/reference.expected.json");
    let all: Value = serde_json::from_str(text).expect("JSON");
    Expected(all).named(name)
}

impl Expected {
    pub(crate) fn named(&self, name: &str) -> Self {
        Self(self.0.get(name).unwrap_or_else(|| panic!("no {name}")).clone())
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = Self> {
        self.0.as_array().expect("a list").clone().into_iter().map(Self)
    }

    pub(crate) fn number(&self, name: &str) -> f64 {
        self.0[name]
            .as_f64()
            .unwrap_or_else(|| panic!("no number {name}"))
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.number(name) as usize
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.0[name]
            .as_bool()
            .unwrap_or_else(|| panic!("no boolean {name}"))
    }

    /// Two whole numbers.
    pub(crate) fn pair(&self, name: &str) -> (usize, usize) {
        let values = self.f32s(name);
        (values[0] as usize, values[1] as usize)
    }

    /// The numbers of a list, null as none.
    pub(crate) fn options(&self) -> Vec<Option<f64>> {
        self.0
            .as_array()
            .expect("a list")
            .iter()
            .map(Value::as_f64)
            .collect()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let values = self.options().into_iter();
        values.map(|value| value.expect("a number") as u8).collect()
    }

    /// The numbers of a list.
    pub(crate) fn floats(&self) -> Vec<f32> {
        let values = self.options().into_iter();
        values.map(|value| value.expect("a number") as f32).collect()
    }

    pub(crate) fn f32s(&self, name: &str) -> Vec<f32> {
        self.named(name).floats()
    }
}

/// Fails where two lists differ by more than `tolerance` of the largest expected value.
pub(crate) fn assert_near(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / largest;
        assert!(
            error < tolerance,
            "{what}, {place}: found {found}, expected {expected}"
        );
    }
}
