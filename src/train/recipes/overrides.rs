//! How a user's recipe file and `--set` change a recipe.

use std::path::{Path, PathBuf};

use macula_models::vit::{FeedForwardKind, VitConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::error::toml_line;
use crate::train::config::TrainConfig;
use crate::{Error, Result};

/// Short names that `--set` and recipe files may use at the top level.
const ALIASES: [(&str, &str); 4] = [
    ("image_size", "crops.global.size"),
    ("local_size", "crops.local.size"),
    ("learning_rate", "optimizer.learning_rate"),
    ("arch", "backbone.arch"),
];

/// What a user changes: a recipe file's table first, then every `a.b=c` of `--set`.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    table: Table,
    /// The recipe file, where there is one.
    file: Option<PathBuf>,
}

impl Overrides {
    /// Reads a recipe file; its `recipe`, if any, names what it builds on.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML.
    pub fn from_file(path: &Path) -> Result<(Self, Option<String>)> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let parse = |e: toml::de::Error| Error::input(path.display().to_string(), toml_line(&e));
        let mut table: Table = text.parse().map_err(parse)?;
        let base = match table.remove("recipe") {
            None => None,
            Some(Value::String(name)) => Some(name),
            Some(other) => {
                let reason = format!("expected a recipe's name, found `{other}`");
                return Err(Error::input(format!("{}: recipe", path.display()), reason));
            }
        };
        let mut overrides = Self {
            file: Some(path.to_owned()),
            ..Self::default()
        };
        for (key, value) in table {
            overrides
                .insert(&key, value)
                .map_err(|error| error.in_file(path))?;
        }
        Ok((overrides, base))
    }

    /// The changes of `assignments`, each as for [`Self::set`].
    ///
    /// # Errors
    /// As for [`Self::set`].
    pub fn of<'a>(assignments: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut overrides = Self::default();
        for assignment in assignments {
            overrides.set(assignment)?;
        }
        Ok(overrides)
    }

    /// An error about these changes, with the recipe file's name where there is one.
    pub fn named(&self, error: Error) -> Error {
        match &self.file {
            Some(file) => error.in_file(file),
            None => error,
        }
    }

    /// Adds `a.b=c`. The value is TOML (`true`, `0.1`, `[0.4, 1.0]`, `"text"`); anything else is text.
    ///
    /// # Errors
    /// No `=`, an empty key, a key through something that is no section.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let wrong = || {
            let reason = format!("expected section.field=value, found `{assignment}`");
            Error::setting("set", reason)
        };
        let (key, text) = assignment.split_once('=').ok_or_else(wrong)?;
        let (key, text) = (key.trim(), text.trim());
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(wrong());
        }
        let parsed: std::result::Result<Table, _> = format!("value = {text}").parse();
        let value = parsed
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_owned()));
        self.insert(key, value)
    }

    fn insert(&mut self, key: &str, value: Value) -> Result<()> {
        let alias = ALIASES.iter().find(|(short, _)| *short == key);
        let key = alias.map_or(key, |(_, full)| full);
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or(key);
        let mut table = &mut self.table;
        for part in parts {
            let entry = table
                .entry(part.to_owned())
                .or_insert_with(|| Value::Table(Table::new()));
            table = match entry {
                Value::Table(table) => table,
                _ => return Err(Error::input(key, format!("`{part}` is a value, not a section"))),
            };
        }
        match (table.get_mut(last), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(table.insert(last.to_owned(), value)),
        }
        Ok(())
    }

    /// `base` with the changes to the section `name` alone, for what must be known before the rest.
    ///
    /// # Errors
    /// An unknown field, a value of another type.
    pub fn section<T: Serialize + DeserializeOwned>(&self, name: &str, base: &T) -> Result<T> {
        let unreadable = |what: String| self.named(Error::input(name, what));
        let Value::Table(mut whole) = Value::try_from(base).map_err(|e| unreadable(e.to_string()))? else {
            return Err(unreadable("no table".to_owned()));
        };
        match self.table.get(name) {
            Some(Value::Table(own)) => merge(&mut whole, own.clone()),
            Some(other) => return Err(unreadable(format!("expected a section, found `{other}`"))),
            None => {}
        }
        whole
            .try_into()
            .map_err(|e: toml::de::Error| unreadable(toml_line(&e)))
    }

    /// `config` with these changes. A new number of `steps` (or of `epochs`, passes over `images`) takes every warm-up with
    /// it, in proportion, before the other changes are made; a `backbone.embed_dim` that is given has a feed-forward of the usual width.
    ///
    /// # Errors
    /// An unknown field, a value of another type or out of range, named as in the file.
    pub fn apply(&self, config: TrainConfig, images: u64) -> Result<TrainConfig> {
        self.applied(config, images).map_err(|error| self.named(error))
    }

    fn applied(&self, mut config: TrainConfig, images: u64) -> Result<TrainConfig> {
        let mut table = self.table.clone();
        let number = |value: Option<Value>, field: &str| match value {
            None => Ok(None),
            Some(Value::Integer(count)) if count > 0 => Ok(Some(count as f64)),
            Some(Value::Float(count)) if count > 0. => Ok(Some(count)),
            Some(other) => {
                let reason = format!("expected a number above 0, found `{other}`");
                Err(Error::input(field, reason))
            }
        };
        let steps = number(table.get("steps").cloned(), "steps")?;
        let epochs = number(table.remove("epochs"), "epochs")?;
        let batch = number(table.get("batch_size").cloned(), "batch_size")?;
        if let Some(batch) = batch {
            config.batch_warmup_start = ((config.batch_warmup_start as f64 * batch
                / config.batch_size.max(1) as f64) as usize)
                .max(1);
        }
        let batch = batch.unwrap_or(config.batch_size as f64);
        match (steps, epochs) {
            (Some(_), Some(_)) => {
                return Err(Error::input("epochs", "expected steps or epochs, found both"));
            }
            (Some(steps), None) => config.rescale(steps as u64),
            (None, Some(epochs)) => {
                config.rescale(((epochs * images as f64 / batch).round() as u64).max(1));
            }
            (None, None) => {}
        }
        if let Some(Value::Table(backbone)) = table.get_mut("backbone") {
            expand_arch(backbone)?;
            // The width of the feed-forward goes with the recipe's own network.
            if backbone.contains_key("embed_dim") {
                config.backbone.ffn_hidden = 0;
            }
        }
        let unreadable = |what: String| Error::input("recipe", what);
        let Value::Table(mut whole) = Value::try_from(&config).map_err(|e| unreadable(e.to_string()))? else {
            return Err(unreadable("no table".to_owned()));
        };
        merge(&mut whole, table);
        let config: TrainConfig = whole
            .try_into()
            .map_err(|e: toml::de::Error| unreadable(toml_line(&e)))?;
        config.validate()?;
        Ok(config)
    }
}

/// `over` on top of `base`, section by section.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// Replaces `arch` by the fields it stands for; fields that are given beside it stay.
fn expand_arch(backbone: &mut Table) -> Result<()> {
    let name = match backbone.remove("arch") {
        None => return Ok(()),
        Some(Value::String(name)) => name,
        Some(other) => {
            let reason = format!("expected a name such as vit-small/14, found `{other}`");
            return Err(Error::input("backbone.arch", reason));
        }
    };
    // A side that every patch size up to 16, and 32, divides: the size of the images is not decided here.
    let vit = VitConfig::named(&name, 1_441_440)?;
    let feed_forward = match vit.feed_forward {
        FeedForwardKind::Mlp => "mlp",
        FeedForwardKind::Swiglu => "swiglu",
    };
    for (field, value) in [
        ("embed_dim", vit.embed_dim),
        ("depth", vit.depth),
        ("num_heads", vit.num_heads),
        ("patch_size", vit.patch_size),
        ("num_registers", vit.num_registers),
        ("ffn_hidden", vit.ffn_hidden),
    ] {
        backbone
            .entry(field.to_owned())
            .or_insert(Value::Integer(value as i64));
    }
    backbone
        .entry("feed_forward".to_owned())
        .or_insert(Value::String(feed_forward.to_owned()));
    if let Some(rope) = vit.rope {
        let rope = Value::try_from(rope).map_err(|e| Error::input("backbone.rope", e.to_string()))?;
        backbone.entry("rope".to_owned()).or_insert(rope);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT, DataFacts, recipe};
    use super::*;

    const FACTS: DataFacts = DataFacts {
        images: 60_000,
        side: 28,
        grey: true,
        framed: true,
    };

    fn base() -> TrainConfig {
        recipe(DEFAULT, "images", &FACTS).unwrap()
    }

    fn with(settings: &[&str]) -> Result<TrainConfig> {
        let mut overrides = Overrides::default();
        for setting in settings {
            overrides.set(setting)?;
        }
        overrides.apply(base(), FACTS.images)
    }

    #[test]
    fn a_shorter_run_has_shorter_warm_ups_unless_they_are_given() {
        let base = base();
        let config = with(&["steps=1000"]).unwrap();
        assert_eq!(config.steps, 1000);
        let share = |config: &TrainConfig| config.optimizer.warmup_steps as f64 / config.steps as f64;
        assert!((share(&config) - share(&base)).abs() < 2e-3);
        assert_eq!(
            with(&["steps=1000", "optimizer.warmup_steps=7"])
                .unwrap()
                .optimizer
                .warmup_steps,
            7
        );
        assert_eq!(with(&["epochs=2", "batch_size=100"]).unwrap().steps, 1200);
        assert_eq!(with(&["epochs=0.5", "batch_size=100"]).unwrap().steps, 300);
    }

    #[test]
    fn an_architecture_stands_for_its_fields() {
        let config = with(&[
            "arch=vit-small/14-reg4",
            "image_size=28",
            "local_size=14",
            "backbone.depth=3",
        ]);
        let backbone = config.unwrap().backbone;
        assert_eq!(
            (
                backbone.embed_dim,
                backbone.depth,
                backbone.num_heads,
                backbone.num_registers
            ),
            (384, 3, 6, 4)
        );
    }

    #[test]
    fn a_width_of_ones_own_has_a_feed_forward_of_four_times() {
        let drawings = DataFacts {
            side: 64,
            grey: false,
            ..FACTS
        };
        let hidden = |settings: &[&str]| {
            let own = recipe("dino", "images", &drawings).unwrap();
            let changes = Overrides::of(settings.iter().copied()).unwrap();
            let config = changes.apply(own, drawings.images).unwrap();
            config.vit().unwrap().ffn_hidden
        };
        assert_eq!(hidden(&[]), 768, "the recipe's own, of d 384");
        assert_eq!(hidden(&["backbone.depth=3"]), 768);
        assert_eq!(hidden(&["backbone.embed_dim=384"]), 1536);
        assert_eq!(hidden(&["backbone.embed_dim=96", "backbone.num_heads=2"]), 384);
        assert_eq!(
            hidden(&["backbone.embed_dim=384", "backbone.ffn_hidden=100"]),
            100
        );
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        for (settings, words) in [
            (&["optimizer.rate=1"][..], &["unknown field `rate`"][..]),
            (&["steps=fast"], &["steps", "fast"]),
            (&["seed=-1"], &["-1"]),
            (&["optimizer=3"], &["3"]),
            (
                &["loss.dino_weight=0", "loss.ibot_weight=0"],
                &["loss", "above 0"],
            ),
            (&["teacher.momentum=1.5"], &["teacher.momentum", "1.5"]),
            (&["crops.flip=2"], &["crops.flip", "2"]),
            (&["crops.warp=0.6"], &["crops.warp", "0 to 0.5", "0.6"]),
            (&["masks.ratio=[0.5, 0.1]"], &["masks.ratio"]),
            (&["batch_size=1"], &["batch_size", "KoLeo"]),
            (&["arch=resnet-50"], &["resnet-50"]),
        ] {
            let text = with(settings).unwrap_err().to_string();
            assert!(
                words.iter().all(|word| text.contains(word)),
                "{settings:?}: {text}"
            );
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}
