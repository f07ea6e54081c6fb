//! Settings as Python hands them over: one JSON object, of which every field must be known.

use std::str::FromStr;

use macula::device::{COMPUTED, Device, Dtype};
use macula::extract::model::{ModelOptions, OutputChoice, PreprocessOverrides};
use macula::extract::{BatchSize, ErrorPolicy};
use macula::{Error, Result};
use macula_models::weights::LoadOptions;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields that nobody has asked for yet.
pub struct Settings(Map<String, Value>);

impl Settings {
    /// Reads an object.
    pub fn parse(json: &str) -> Result<Self> {
        match serde_json::from_str(json) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Error::setting("settings", "expected an object")),
            Err(error) => Err(Error::setting("settings", error.to_string())),
        }
    }

    /// The field `name`; none where it is missing or null.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        let value = match self.0.remove(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let shown = value.to_string();
        serde_json::from_value(value)
            .map(Some)
            .map_err(|error| Error::setting(name, format!("{error}, found {shown}")))
    }

    /// As [`Self::take`], or `default`.
    pub fn or<T: DeserializeOwned>(&mut self, name: &str, default: T) -> Result<T> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    /// The field `name`, as text of a type that reads itself.
    pub fn read<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Result<Option<T>> {
        let text = match self.take::<Value>(name)? {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(other) => other.to_string(),
        };
        // A reader that names the field itself need not be introduced.
        let said = |error: T::Err| error.to_string();
        let plain = |text: String| {
            let prefix = format!("{name}: ");
            text.strip_prefix(&prefix).map_or(text.clone(), str::to_owned)
        };
        text.parse()
            .map(Some)
            .map_err(|error| Error::setting(name, plain(said(error))))
    }

    /// What happens to an image that cannot be read.
    pub fn on_error(&mut self) -> Result<ErrorPolicy> {
        match self.take::<String>("on_error")?.as_deref() {
            None | Some("fail") => Ok(ErrorPolicy::Fail),
            Some("skip") => Ok(ErrorPolicy::Skip),
            Some("null") => Ok(ErrorPolicy::Null),
            Some(other) => Err(Error::setting(
                "on_error",
                format!("expected fail, skip or null, found `{other}`"),
            )),
        }
    }

    /// Images per run of a model.
    pub fn batch_size(&mut self) -> Result<BatchSize> {
        Ok(self.read("batch_size")?.unwrap_or(BatchSize::Fixed(32)))
    }

    /// How images are decoded.
    pub fn decode(&mut self) -> Result<macula::data::DecodeOptions> {
        let defaults = macula::data::DecodeOptions::default();
        Ok(macula::data::DecodeOptions {
            exif: self.or("exif", defaults.exif)?,
            max_pixels: self.or("max_pixels", defaults.max_pixels)?,
            background: self.take("background")?,
            ..defaults
        })
    }

    /// How a model is opened; `threads` are for what runs it.
    pub fn model(&mut self, threads: usize) -> Result<ModelOptions> {
        let compute = self.or("compute", Dtype::F32)?;
        compute.check("compute", &COMPUTED)?;
        Ok(ModelOptions {
            outputs: OutputChoice::named(&self.or::<Vec<String>>("outputs", Vec::new())?),
            preprocess: PreprocessOverrides {
                resize: self.take("resize")?,
                crop: self.take("crop")?,
                interpolation: self.take("interpolation")?,
                mean: self.take("mean")?,
                std: self.take("std")?,
                sample_range: self.take("sample_range")?,
            },
            device: self.read("device")?.unwrap_or(Device::Auto),
            compute,
            threads,
            ort_lib: self.take("ort_lib")?,
            checkpoint: LoadOptions {
                num_heads: self.take("heads")?,
                arch: self.take("arch")?,
                position_rule: self.take("position_rule")?,
                activation: self.take("activation")?,
            },
        })
    }

    /// Refuses what is left.
    pub fn end(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::setting(name, "expected a known setting")),
        }
    }
}
