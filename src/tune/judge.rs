//! What decides which candidates go on.

use serde::{Deserialize, Serialize};

use crate::train::config::Selection;

/// What decides which candidates go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// Accuracy of online k-NN on labelled images.
    Knn,
    /// RankMe of each run by itself.
    Rankme,
    /// LiDAR of each run by itself.
    Lidar,
    /// How many of an image's nearest neighbours the other candidates see too ([`super::agreement`]).
    Agreement,
}

impl Judge {
    /// Every kind by its name.
    const ALL: [(&str, Self); 4] = [
        ("knn", Self::Knn),
        ("rankme", Self::Rankme),
        ("lidar", Self::Lidar),
        ("agreement", Self::Agreement),
    ];

    /// The reading of a run by itself; none where candidates are compared with each other.
    pub fn meter(self) -> Option<Selection> {
        match self {
            Self::Knn => Some(Selection::Knn),
            Self::Rankme => Some(Selection::Rankme),
            Self::Lidar => Some(Selection::Lidar),
            Self::Agreement => None,
        }
    }

    /// The name of the reading in the table of a search.
    pub fn key(self) -> &'static str {
        self.meter().map_or("agreement", Selection::key)
    }
}

impl std::str::FromStr for Judge {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, kind)| *kind)
            .ok_or_else(|| format!("expected knn, rankme, lidar or agreement, found {text}"))
    }
}
