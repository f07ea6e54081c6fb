//! Whether two feature folders, or a folder and a request, speak of the same model, preprocessing and images. A folder
//! written before there were fingerprints is compared by what it has.

use serde_json::{Value, json};

use super::Meta;
use crate::identity::{self, Difference, Made, difference, model_and_runtime_of, source_difference};

/// Why comparing the features of two folders, each with its name, is unfair, a line each.
pub fn unfair(first: (&str, &Meta), second: (&str, &Meta)) -> Vec<String> {
    let prepared = preprocessing(first.1, second.1);
    let [a, b] = [(first, prepared.0), (second, prepared.1)].map(|((name, meta), preprocess)| Made {
        name,
        model: &meta.model,
        preprocess: Some(preprocess),
    });
    identity::unfair(&a, &b)
}

/// The first field in which rows made as `found` says would not be rows of what `wanted` says: they may not lie in one
/// folder, nor be taken for one another.
pub(super) fn mixed(wanted: &Meta, found: &Meta) -> Option<Difference> {
    let of = |meta: &Meta| model_and_runtime_of(&meta.model);
    difference("model", &of(wanted), &of(found))
        .or_else(|| {
            let (wanted, found) = preprocessing(wanted, found);
            difference("preprocess", wanted, found)
        })
        .or_else(|| images_difference(wanted, found))
        .or_else(|| difference("", &layout(wanted), &layout(found)))
}

/// How rows are stored, and by which version.
fn layout(meta: &Meta) -> Value {
    json!({
        "format_version": meta.format_version,
        "tool_version": meta.tool_version,
        "outputs": meta.outputs,
        "dtype": meta.dtype,
        "on_error": meta.on_error,
        "layout": meta.layout,
        "part_rows": meta.part_rows,
        "shard": { "count": meta.shard.count },
    })
}

/// What both say of preprocessing.
fn preprocessing<'a>(a: &'a Meta, b: &'a Meta) -> (&'a Value, &'a Value) {
    match (&a.fingerprint, &b.fingerprint) {
        (Some(a), Some(b)) => (&a.preprocess, &b.preprocess),
        _ => (&a.preprocess, &b.preprocess),
    }
}

fn images_difference(a: &Meta, b: &Meta) -> Option<Difference> {
    match (&a.fingerprint, &b.fingerprint) {
        (Some(a), Some(b)) => source_difference(&a.source, &b.source),
        _ => difference("source", &a.source, &b.source),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FORMAT_VERSION, ShardMeta};
    use super::*;
    use crate::data::{DecodeOptions, Preprocess, open};
    use crate::identity::Fingerprint;

    fn meta(sha256: &str, decode: DecodeOptions) -> Meta {
        let model = json!({ "kind": "onnx", "file": format!("{sha256}.onnx"), "sha256": sha256 });
        let preprocess = Preprocess::imagenet(256, 224);
        let source = open("sample:test").unwrap();
        let identity = crate::data::SourceIdentity::from_source(source.as_ref());
        Meta {
            format_version: FORMAT_VERSION,
            tool_version: "test".to_owned(),
            fingerprint: Some(Fingerprint::new(&model, &preprocess, &decode, identity).unwrap()),
            model,
            preprocess: json!(preprocess),
            outputs: Vec::new(),
            source: source.describe(),
            n_rows: 1000,
            shard: ShardMeta { index: 0, count: 1 },
            part_rows: 10,
            on_error: "fail".to_owned(),
            layout: Default::default(),
            dtype: Default::default(),
            n_written: None,
            n_failed: None,
        }
    }

    #[test]
    fn renamed_files_are_the_same_and_replaced_ones_are_not() {
        let plain = DecodeOptions::default();
        let one = meta("11", plain);
        let mut renamed = one.clone();
        renamed.model["file"] = "other.onnx".into();
        renamed.source["path"] = "elsewhere".into();
        assert_eq!(mixed(&one, &renamed), None);
        assert!(unfair(("a", &one), ("b", &renamed)).is_empty());
        let two = meta("22", plain);
        assert_eq!(
            mixed(&one, &two).unwrap().to_string(),
            "model.sha256: expected 11, found 22"
        );
        let turned = meta("11", DecodeOptions { exif: true, ..plain });
        assert_eq!(
            mixed(&one, &turned).unwrap().to_string(),
            "preprocess.decode.exif: expected false, found true"
        );
        assert_eq!(
            unfair(("a", &two), ("b", &turned)),
            [
                "a and b were made by different models (model.sha256 22 and 11)",
                "a and b were made with different preprocessing (preprocess.decode.exif false and true)"
            ]
        );
    }

    #[test]
    fn a_folder_without_a_fingerprint_is_compared_by_what_it_has() {
        let new = meta("11", DecodeOptions::default());
        let old = Meta {
            fingerprint: None,
            ..new.clone()
        };
        assert_eq!(mixed(&new, &old), None);
        let mut other = old.clone();
        other.preprocess["resize"] = 128.into();
        assert_eq!(
            mixed(&new, &other).unwrap().to_string(),
            "preprocess.resize: expected 256, found 128"
        );
        let mut other = old.clone();
        other.source["split"] = "train".into();
        assert_eq!(mixed(&new, &other).unwrap().field, "source.split");
        let text = serde_json::to_string(&old).unwrap();
        assert!(!text.contains("fingerprint"));
        assert_eq!(serde_json::from_str::<Meta>(&text).unwrap(), old);
    }
}
