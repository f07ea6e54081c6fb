//! Which blocks' patch tokens a dense task reads.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Blocks whose patch tokens lie side by side in a feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatchLayers {
    /// The output `patch`: the last block.
    Last,
    /// The last four blocks, oldest first.
    LastFour,
    /// Blocks by number, from 0, in this order.
    Blocks(Vec<usize>),
}

impl PatchLayers {
    /// The outputs of `available` that these blocks are: patch tokens, each followed by its class token where `cls` is
    /// wanted and every block has one.
    pub(super) fn choose(&self, file: &str, available: &[String], cls: bool) -> Result<Vec<String>> {
        if let [pixels] = available
            && pixels == "pixels"
        {
            return Ok(available.to_vec());
        }
        let has = |name: &String| available.contains(name);
        let pairs: Vec<(String, String)> = match self.blocks(available) {
            None => vec![("patch".to_owned(), "cls".to_owned())],
            Some(blocks) => blocks
                .iter()
                .map(|block| (format!("layer:{block}.patch"), format!("layer:{block}.cls")))
                .collect(),
        };
        let too_few = *self == Self::LastFour && pairs.len() < 4;
        match pairs.iter().find(|(patch, _)| !has(patch)) {
            Some((missing, _)) => Err(lacks(file, missing, available)),
            None if too_few => Err(lacks(file, "layer:I.patch of four blocks", available)),
            None => {
                let cls = cls && pairs.iter().all(|(_, cls)| has(cls));
                let names = pairs
                    .into_iter()
                    .flat_map(|(patch, class)| [Some(patch), cls.then_some(class)]);
                Ok(names.flatten().collect())
            }
        }
    }

    /// The numbers of the blocks; `None` for the output `patch`.
    fn blocks(&self, available: &[String]) -> Option<Vec<usize>> {
        match self {
            Self::Last => None,
            Self::Blocks(blocks) => Some(blocks.clone()),
            Self::LastFour => {
                let number = |name: &String| -> Option<usize> {
                    name.strip_prefix("layer:")?.strip_suffix(".patch")?.parse().ok()
                };
                let mut blocks: Vec<usize> = available.iter().filter_map(number).collect();
                blocks.sort_unstable();
                Some(blocks.split_off(blocks.len().saturating_sub(4)))
            }
        }
    }
}

fn lacks(file: &str, missing: &str, available: &[String]) -> Error {
    Error::input(
        file,
        format!(
            "expected an output `{missing}`, found {}; `macula export --outputs` chooses them",
            available.join(", ")
        ),
    )
}

impl fmt::Display for PatchLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last => f.write_str("last"),
            Self::LastFour => f.write_str("last4"),
            Self::Blocks(blocks) => {
                let blocks: Vec<String> = blocks.iter().map(usize::to_string).collect();
                f.write_str(&blocks.join(","))
            }
        }
    }
}

impl FromStr for PatchLayers {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "last" => Ok(Self::Last),
            "last4" => Ok(Self::LastFour),
            _ => {
                let blocks = text.split(',').map(|block| block.trim().parse().ok());
                blocks
                    .collect::<Option<Vec<usize>>>()
                    .map(Self::Blocks)
                    .ok_or_else(|| {
                        format!("expected last, last4 or numbers of blocks as in 2,5,8,11, found `{text}`")
                    })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(layers: &str, available: &[&str], cls: bool) -> Result<Vec<String>> {
        let available: Vec<String> = available.iter().map(|&name| name.to_owned()).collect();
        layers
            .parse::<PatchLayers>()
            .unwrap()
            .choose("m.onnx", &available, cls)
    }

    #[test]
    fn blocks_become_outputs() {
        let all = [
            "cls",
            "patch",
            "layer:2.patch",
            "layer:10.patch",
            "layer:9.patch",
            "layer:11.patch",
            "layer:11.cls",
            "layer:2.cls",
        ];
        assert_eq!(chosen("last", &all, true).unwrap(), ["patch", "cls"]);
        assert_eq!(chosen("last", &["patch"], true).unwrap(), ["patch"]);
        assert_eq!(chosen("last", &["pixels"], true).unwrap(), ["pixels"]);
        // Not every one of the four has a class token.
        assert_eq!(
            chosen("last4", &all, true).unwrap(),
            [
                "layer:2.patch",
                "layer:9.patch",
                "layer:10.patch",
                "layer:11.patch"
            ]
        );
        assert_eq!(
            chosen("2, 11", &all, true).unwrap(),
            ["layer:2.patch", "layer:2.cls", "layer:11.patch", "layer:11.cls"]
        );
        assert_eq!(
            chosen("2,11", &all, false).unwrap(),
            ["layer:2.patch", "layer:11.patch"]
        );
    }

    #[test]
    fn outputs_that_are_not_there_are_named() {
        let error =
            |layers: &str, available: &[&str]| chosen(layers, available, false).unwrap_err().to_string();
        assert!(error("last", &["cls", "pixels"]).contains("`patch`, found cls, pixels"));
        assert!(error("last4", &["layer:1.patch"]).contains("of four blocks"));
        assert!(error("1,3", &["layer:1.patch"]).contains("`layer:3.patch`"));
        assert!(
            "first"
                .parse::<PatchLayers>()
                .unwrap_err()
                .contains("found `first`")
        );
        for text in ["last", "last4", "2,5"] {
            assert_eq!(text.parse::<PatchLayers>().unwrap().to_string(), text);
        }
    }
}
