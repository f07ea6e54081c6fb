//! What may be varied: fields of a recipe, each with the values it may have. A candidate is one choice of each.

use std::path::Path;

use rand::seq::SliceRandom as _;
use serde::Deserialize;
use toml::{Table, Value};

use crate::error::toml_line;
use crate::train::config::TrainConfig;
use crate::{Error, Result, rng};

/// More combinations than this are refused: they are counted out before some are drawn.
const MAX_COMBINATIONS: usize = 1_000_000;
/// The field that names the recipe rather than one of its settings.
const RECIPE: &str = "recipe";

/// The fields that are varied.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Space {
    #[serde(rename = "choice")]
    choices: Vec<Choice>,
}

/// One field, and what it may be.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choice {
    /// A field as `--set` names it, or `recipe`.
    field: String,
    /// The values it may have.
    #[serde(default)]
    values: Vec<Value>,
    /// Or what the recipe's own number is multiplied by.
    #[serde(default)]
    factors: Vec<f64>,
}

/// One combination: a recipe and what of it is changed, as `--set` takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Combination {
    /// Name of the recipe.
    pub recipe: String,
    /// `field=value` each.
    pub settings: Vec<String>,
}

impl Space {
    /// The default: what differs most from images to images. The recipes are `recipes`; the learning rate is the recipe's own, half
    /// and twice of it; the teacher's momentum 0.98, 0.99 or 0.996; the least share of an image that a global crop shows 0.25, 0.4
    /// or 0.6.
    pub fn default_for(recipes: &[String]) -> Self {
        let scale = |least: f64| Value::Array(vec![Value::Float(least), Value::Float(1.)]);
        let choice = |field: &str, values: Vec<Value>, factors: &[f64]| Choice {
            field: field.to_owned(),
            values,
            factors: factors.to_vec(),
        };
        Self {
            choices: vec![
                choice(RECIPE, recipes.iter().cloned().map(Value::String).collect(), &[]),
                choice("optimizer.learning_rate", Vec::new(), &[1., 0.5, 2.]),
                choice(
                    "teacher.momentum",
                    [0.98, 0.99, 0.996].map(Value::Float).to_vec(),
                    &[],
                ),
                choice("crops.global.scale", [0.25, 0.4, 0.6].map(scale).to_vec(), &[]),
            ],
        }
    }

    /// Reads a file of `[[choice]]` tables; without one of `recipe`, `recipes` are varied.
    ///
    /// # Errors
    /// A file that cannot be read or is no such TOML; a choice without values, or with both values and factors; no choice.
    pub fn read(path: &Path, recipes: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let mut space: Self =
            toml::from_str(&text).map_err(|e| Error::input(path.display().to_string(), toml_line(&e)))?;
        space.check().map_err(|error| error.in_file(path))?;
        if !space.choices.iter().any(|choice| choice.field == RECIPE) {
            let default = Self::default_for(recipes).choices.swap_remove(0);
            space.choices.insert(0, default);
        }
        Ok(space)
    }

    fn check(&self) -> Result<()> {
        if self.choices.is_empty() {
            return Err(Error::input(
                "choice",
                "expected at least one [[choice]], found none",
            ));
        }
        for choice in &self.choices {
            let field = &choice.field;
            let wrong = |reason: String| Err(Error::input(format!("choice of {field}"), reason));
            match (choice.values.len(), choice.factors.len()) {
                (0, 0) => return wrong("expected values or factors, found neither".to_owned()),
                (1.., 1..) => return wrong("expected values or factors, found both".to_owned()),
                _ => {}
            }
            if field == RECIPE && !choice.values.iter().all(Value::is_str) {
                return wrong("expected names of recipes".to_owned());
            }
            if self.choices.iter().filter(|other| other.field == *field).count() > 1 {
                return wrong("expected once, found twice".to_owned());
            }
        }
        Ok(())
    }

    /// Names of the recipes that may be drawn.
    pub fn recipes(&self) -> Vec<String> {
        let names = self.choices.iter().filter(|choice| choice.field == RECIPE);
        names
            .flat_map(|choice| &choice.values)
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    }

    /// All combinations, in an order that `seed` draws; before them every recipe as it is. `config_of` gives a recipe's settings,
    /// for factors of its own numbers.
    ///
    /// # Errors
    /// More than a million combinations, a factor of what is no number, what `config_of` says.
    pub fn combinations(
        &self,
        seed: u64,
        config_of: impl Fn(&str) -> Result<TrainConfig>,
    ) -> Result<Vec<Combination>> {
        let others: Vec<&Choice> = self
            .choices
            .iter()
            .filter(|choice| choice.field != RECIPE)
            .collect();
        let recipes = self.recipes();
        let count = others
            .iter()
            .map(|choice| choice.len())
            .try_fold(recipes.len(), usize::checked_mul)
            .filter(|count| *count <= MAX_COMBINATIONS);
        let Some(count) = count else {
            let reason = format!("expected at most {MAX_COMBINATIONS} combinations, found more");
            return Err(Error::setting("space", reason));
        };
        let tables = recipes
            .iter()
            .map(|recipe| table_of(&config_of(recipe)?))
            .collect::<Result<Vec<Table>>>()?;
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut rng::stream(seed, "tune", 0));
        let plain = recipes.iter().map(|recipe| Combination {
            recipe: recipe.clone(),
            settings: Vec::new(),
        });
        let mut all: Vec<Combination> = plain.collect();
        for number in order {
            let (mut rest, recipe) = (number / recipes.len(), number % recipes.len());
            let mut settings = Vec::with_capacity(others.len());
            for choice in &others {
                settings.push(choice.setting(rest % choice.len(), &tables[recipe])?);
                rest /= choice.len();
            }
            all.push(Combination {
                recipe: recipes[recipe].clone(),
                settings,
            });
        }
        Ok(all)
    }
}

impl Choice {
    fn len(&self) -> usize {
        self.values.len() + self.factors.len()
    }

    /// `field=value` of the value at `place`, for a recipe whose settings are `table`.
    fn setting(&self, place: usize, table: &Table) -> Result<String> {
        let field = &self.field;
        if let Some(value) = self.values.get(place) {
            return Ok(format!("{field}={value}"));
        }
        let own = field
            .split('.')
            .try_fold(None, |found: Option<&Value>, part| {
                let inner = match found {
                    None => table.get(part),
                    Some(value) => value.as_table().and_then(|table| table.get(part)),
                };
                inner.map(Some)
            })
            .flatten();
        let factor = self.factors[place];
        let value = match own {
            Some(Value::Float(own)) => Value::Float(own * factor),
            Some(Value::Integer(own)) => Value::Integer((*own as f64 * factor).round() as i64),
            Some(other) => {
                let reason = format!("expected a number to multiply, found `{other}`");
                return Err(Error::input(format!("choice of {field}"), reason));
            }
            None => {
                let reason = "expected a field of the recipe, found none";
                return Err(Error::input(format!("choice of {field}"), reason));
            }
        };
        Ok(format!("{field}={value}"))
    }
}

fn table_of(config: &TrainConfig) -> Result<Table> {
    match Value::try_from(config) {
        Ok(Value::Table(table)) => Ok(table),
        Ok(other) => Err(Error::failed(
            "recipe",
            format!("expected a table, found `{other}`"),
        )),
        Err(error) => Err(Error::failed("recipe", error.to_string())),
    }
}
