//! The last word on a distillation's settings, once teacher and source are known: everything they decide is entered, and
//! what they cannot serve is refused before a run begins.

use crate::data::Source;
use crate::train::config::{Term, TrainConfig};
use crate::train::distillation::{Labels, TeacherFacts};
use crate::{Error, Result};

/// `config` with what `teacher` and `source` decide.
///
/// # Errors
/// A term that the teacher cannot serve, prototypes or classes that do not agree, a size that the teacher does not take.
pub fn settle(mut config: TrainConfig, teacher: &TeacherFacts, source: &dyn Source) -> Result<TrainConfig> {
    let Some(distill) = &mut config.distill else {
        return Err(Error::failed(
            "distillation",
            "expected the section distill, found none",
        ));
    };
    distill.teacher_sha256 = teacher.sha256.clone();
    distill.offer = teacher.offer;
    let offer = teacher.offer;
    let unserved = |field: &str, what: &str| {
        let reason = format!("expected 0 for a teacher without {what}; it has {offer}");
        Err(Error::input(field, reason))
    };
    for term in Term::ALL {
        if distill.has(term) && !term.is_served_by(&offer) {
            return unserved(term.field(), what(term));
        }
    }
    if distill.has_labels() {
        distill.label_classes = Labels::read(source)?.classes();
        if distill.classifier() != distill.label_classes {
            let reason = format!(
                "expected labels of the teacher's {} classes, found {} in the source",
                distill.classifier(),
                distill.label_classes
            );
            return Err(Error::input("distill.label_weight", reason));
        }
    }
    let prototypes = distill.logits_are_prototypes();
    let size = distill.teacher_size as usize;
    teacher.size.resolve(size, config.crops.global.size as usize)?;
    if config.has_dino() && offer.dino_prototypes == 0 {
        return unserved("loss.dino_weight", "a DINO head");
    }
    if config.has_ibot() && offer.ibot_prototypes == 0 {
        return unserved("loss.ibot_weight", "an iBOT head");
    }
    let loss = &config.loss;
    if config.has_dino() || prototypes {
        agree(
            "loss.head.prototypes",
            loss.head.prototypes,
            offer.dino_prototypes,
        )?;
    }
    if config.has_ibot() {
        let (field, head) = match &loss.ibot_head {
            Some(head) => ("loss.ibot_head.prototypes", head),
            None => ("loss.head.prototypes", &loss.head),
        };
        agree(field, head.prototypes, offer.ibot_prototypes)?;
    }
    config.validate()?;
    Ok(config)
}

fn agree(field: &str, own: usize, teachers: usize) -> Result<()> {
    if own == teachers {
        return Ok(());
    }
    let reason = format!("expected the teacher's {teachers}, found {own}");
    Err(Error::input(field, reason))
}

/// What a term needs.
fn what(term: Term) -> &'static str {
    match term {
        Term::Cls => "a class token",
        Term::PatchMean => "a mean patch token",
        Term::Patch => "patch tokens",
        Term::Relation => "features",
        Term::Logits => "a classifier or prototypes",
    }
}
