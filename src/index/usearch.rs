//! The kind `usearch`, in programs that were built with the feature of this name. The others know it by name and refuse it.

use super::Kind;

/// The kinds that a program without the feature knows, and how to get one that has it.
const WITHOUT: &str = "exact or hnsw (this program was built without the feature `usearch`; \
                       `cargo install --path . --locked --features usearch` builds one with it)";

/// What this program expects in place of `kind`, where it was built without it.
pub(super) fn missing(kind: Kind) -> Option<&'static str> {
    (kind == Kind::Usearch && !cfg!(feature = "usearch")).then_some(WITHOUT)
}

#[cfg(feature = "usearch")]
pub(super) use with::{build, open};
#[cfg(not(feature = "usearch"))]
pub(super) use without::{build, open};

#[cfg(feature = "usearch")]
mod with {
    use std::path::Path;

    use macula_eval::MatrixView;
    use macula_eval::index::{Index, UsearchIndex};

    use crate::Result;
    use crate::index::build::{Built, DEFAULT_EF_SEARCH, RECALL_K, recall_of};
    use crate::index::{IndexOptions, Manifest, USEARCH_FILE};

    /// Builds the graph in memory.
    pub(in crate::index) fn build(
        features: MatrixView<'_>,
        options: &IndexOptions,
        progress: impl Fn(usize),
    ) -> Result<Built> {
        let (config, scalar) = (&options.hnsw, options.scalar);
        let Some(target) = options.recall else {
            let index = UsearchIndex::build(features, config, scalar, progress)?;
            return Ok((Index::Usearch(index), Some(DEFAULT_EF_SEARCH), None));
        };
        let asked = (target, RECALL_K, options.recall_seed());
        let (index, tuning) = UsearchIndex::build_for_recall(features, config, scalar, asked, progress)?;
        let measured = recall_of(target, &tuning);
        Ok((Index::Usearch(index), Some(tuning.ef_search), Some(measured)))
    }

    /// Maps the file of `folder`.
    pub(in crate::index) fn open(folder: &Path, manifest: &Manifest) -> Result<Index> {
        let (rows, dim) = (manifest.count, manifest.dim);
        let scalar = manifest.scalar.unwrap_or_default();
        let index = UsearchIndex::view(&folder.join(USEARCH_FILE), rows, dim, scalar)?;
        Ok(Index::Usearch(index))
    }
}

#[cfg(not(feature = "usearch"))]
mod without {
    use std::path::Path;

    use macula_eval::MatrixView;
    use macula_eval::index::Index;

    use super::WITHOUT;
    use crate::index::build::Built;
    use crate::index::{IndexOptions, Manifest};
    use crate::{Error, Result};

    pub(in crate::index) fn build(_: MatrixView<'_>, _: &IndexOptions, _: impl Fn(usize)) -> Result<Built> {
        Err(Error::setting("kind", format!("expected {WITHOUT}")))
    }

    pub(in crate::index) fn open(folder: &Path, _: &Manifest) -> Result<Index> {
        Err(Error::input(
            folder.display().to_string(),
            format!("kind: expected {WITHOUT}"),
        ))
    }
}
