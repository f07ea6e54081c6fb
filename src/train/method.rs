//! The one self-supervised method: a student and a teacher that follows it, and an objective whose terms the configuration
//! switches on. DINO, iBOT, DINOv2 and momentum contrast are settings of it (facebookresearch/dinov2
//! `train/ssl_meta_arch.py`; facebookresearch/moco `moco/builder.py`).

mod distil;

use std::time::Instant;

use candle_core::{Device, Tensor};
use macula_models::heads::DinoHead;
use macula_models::vit::{DropPathMode, DropPathPlan, ImageRows, VisionTransformer};
use macula_models::weights::Tensors;
use rand::seq::index;

use super::clock::Clock;
use super::config::{Centering, StepValues, Term, TrainConfig};
use super::distillation::FrozenTargets;
use super::feed::{DeviceBatch, MicroBatch};
use super::losses::targets::{SINKHORN_ITERATIONS, SoftmaxCentering, sinkhorn_knopp};
use super::losses::{
    KeyQueue, Logits, dino_cls_loss, hog_targets, ibot_patch_loss, info_nce_loss, koleo_loss,
    reconstruction_loss, reduced,
};
use super::network::{Gradients, Network, NetworkConfig};
use super::ranks::{OneRank, Ranks};
use crate::data::augment::MultiCrop;
use crate::data::loader::Batch;
use crate::data::mask::BatchMasks;
use crate::{Error, Result, rng};

/// Names of the memory's tensors in a checkpoint.
const CLS_CENTRE: &str = "cls_centre";
const PATCH_CENTRE: &str = "patch_centre";
const QUEUE: &str = "queue";
const RELATION_TEACHER: &str = "relation_teacher";
const RELATION_STUDENT: &str = "relation_student";

/// Student, teacher, and what their objective remembers from step to step.
pub struct Method {
    config: TrainConfig,
    multi_crop: MultiCrop,
    device: Device,
    clock: Clock,
    ranks: Box<dyn Ranks + Send>,
    /// The network that learns.
    pub student: Network,
    /// Its moving average, which gives the targets and is what a run leaves behind.
    pub teacher: Network,
    /// What a checkpoint keeps beside the weights.
    pub memory: Memory,
    /// The network that gives the targets in the teacher's place, in a distillation.
    frozen: Option<FrozenTargets>,
}

/// State of the objective.
#[derive(Debug, Default)]
pub struct Memory {
    /// Centre of class-token logits, with softmax centring.
    pub cls_centre: Option<SoftmaxCentering>,
    /// Centre of patch logits, with softmax centring.
    pub patch_centre: Option<SoftmaxCentering>,
    /// Negatives of the contrastive term.
    pub queue: Option<KeyQueue>,
    /// What the frozen teacher and the averaged student saw of the latest images, where relations are distilled.
    pub relations: Option<RelationQueues>,
}

/// Features of the same images in the same order.
#[derive(Debug)]
pub struct RelationQueues {
    teacher: KeyQueue,
    student: KeyQueue,
}

/// The loss of one micro-batch.
pub struct StepLoss {
    /// The weighted sum of all terms, scalar.
    pub total: Tensor,
    /// The terms by name, weighted, scalars.
    pub terms: Vec<(&'static str, Tensor)>,
    /// The teacher's distributions over the prototypes for the class tokens [2 B, K], where the DINO term is on.
    pub cls_targets: Option<Tensor>,
    /// Seconds the teacher's passes and targets took.
    pub teacher_seconds: f64,
}

/// The crops of a micro-batch as tensors.
struct Crops {
    global: Tensor,        // [2 B, 3, S, S]
    local: Option<Tensor>, // [L B, 3, s, s]
    masks: Option<Masks>,
    batch: usize,
}

struct Masks {
    bits: Tensor, // [2 B, N]
    /// Places in [2 B, N] of the masked patches, [M].
    indices: Vec<u32>,
    per_crop: Vec<usize>,
}

/// Tokens that a pass gives, after the final norm.
struct BackboneOutput {
    cls: Tensor,             // [B, D]
    patches: Option<Tensor>, // [M, D], the requested ones
}

/// The student's tokens of a micro-batch's crops, after the final norm.
struct CropOutputs {
    global: BackboneOutput,
    local: Option<Tensor>, // class tokens [L B, D], where requested
}

/// Which outputs of a micro-batch's crops are wanted.
struct ForwardRequest<'a> {
    /// Where not 0, patches of global crops [2 B, N] are hidden.
    hidden: Option<&'a Tensor>,
    /// Places in [2 B, N] of the patches that are looked at.
    places: &'a [u32],
    /// Whether local crops are looked at.
    locals: bool,
}

/// A teacher's distributions over prototypes.
struct PrototypeTargets {
    cls: Option<Tensor>,                 // [2 B, K]
    patch: Option<(Tensor, Vec<usize>)>, // [M, K], and how many of them each crop has
}

/// What decides the random choices of one pass.
struct Pass<'a> {
    name: &'a str,
    crops: Side,
    micro_batch: u64,
}

/// Which crops a pass is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Global,
    Local,
}

impl Method {
    /// A new method: student and teacher from the same `weights`.
    ///
    /// # Errors
    /// Weights that are not those of the configured networks.
    pub fn new(config: &TrainConfig, weights: &Tensors, device: &Device) -> Result<Self> {
        Self::with_teacher(config, weights, weights, device)
    }

    /// A method whose teacher has other weights than its student, as in a run that goes on.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_teacher(
        config: &TrainConfig,
        student: &Tensors,
        teacher: &Tensors,
        device: &Device,
    ) -> Result<Self> {
        let network = NetworkConfig::new(config)?;
        Ok(Self {
            memory: Memory::new(config, device)?,
            student: Network::from_tensors(&network, student, device, Gradients::Tracked)?,
            teacher: Network::from_tensors(&network, teacher, device, Gradients::None)?,
            config: config.clone(),
            multi_crop: MultiCrop::new(config.crops.clone())?,
            device: device.clone(),
            clock: Clock::default(),
            ranks: Box::new(OneRank),
            frozen: None,
        })
    }

    /// Times the teacher's passes with this clock.
    pub(super) fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Where the networks are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Gives a distillation its frozen teacher.
    pub fn learn_from(&mut self, frozen: FrozenTargets) {
        self.frozen = Some(frozen);
    }

    /// The objective on one micro-batch. `number` numbers those of the whole run: it decides the stochastic depth.
    ///
    /// # Errors
    /// Crops of another size than configured, failures of candle.
    pub fn loss(
        &mut self,
        micro_batch: &impl MicroBatch,
        number: u64,
        values: &StepValues,
    ) -> Result<StepLoss> {
        let batch = micro_batch.batch();
        let crops = match micro_batch.on_device() {
            Some(on_device) => self.crops(batch, on_device),
            None => self.crops(
                batch,
                &DeviceBatch::upload(batch, &self.multi_crop, &self.device)?,
            ),
        };
        let crops = crops?;
        let mut loss = StepLoss {
            total: Tensor::zeros((), candle_core::DType::F32, &self.device)?,
            terms: Vec::new(),
            cls_targets: None,
            teacher_seconds: 0.,
        };
        if self.config.has_info_nce() {
            self.contrast(&crops, number, values, &mut loss)?;
        }
        if self.config.distill.is_some() {
            self.distil(&crops, batch, number, values, &mut loss)?;
        } else if self.config.has_dino() || self.config.has_ibot() {
            self.self_distil(&crops, number, values, &mut loss)?;
        }
        for (_, term) in &loss.terms {
            loss.total = (&loss.total + term)?;
        }
        Ok(loss)
    }

    /// The crops of `batch`, of which `sent` lies on the device.
    fn crops(&self, batch: &Batch, on_device: &DeviceBatch) -> candle_core::Result<Crops> {
        let (global, local) = on_device.crops(&self.config.crops)?;
        let crops = global.dim(0)?;
        let masks = batch.masks.as_ref().zip(on_device.masks());
        let masks = masks.map(|(masks, bits)| Masks::new(masks, bits, crops));
        Ok(Crops {
            global,
            local,
            masks: masks.transpose()?,
            batch: batch.size,
        })
    }

    /// What the student sees of all crops, with stochastic depth drawn for each side of them.
    fn student_outputs(
        &self,
        crops: &Crops,
        request: &ForwardRequest,
        micro_batch: u64,
    ) -> Result<CropOutputs> {
        let pass = |name, crops| Pass {
            name,
            crops,
            micro_batch,
        };
        let (globals, locals) = (pass("globals", Side::Global), pass("locals", Side::Local));
        let Some(local) = crops.local.as_ref().filter(|_| request.locals) else {
            return Ok(CropOutputs {
                global: self.student_output(&crops.global, request.hidden, &globals, request.places)?,
                local: None,
            });
        };
        if self.config.backbone.patch_drop_rate > 0. {
            return Ok(CropOutputs {
                global: self.student_output(&crops.global, request.hidden, &globals, request.places)?,
                local: Some(self.student_output(local, None, &locals, &[])?.cls),
            });
        }
        let vit = &self.student.vit;
        let plans = [
            self.drop_path(&globals, &crops.global)?,
            self.drop_path(&locals, local)?,
        ];
        let rows = [
            rows_of(vit, &crops.global, request.places)?,
            rows_of(vit, local, &[])?,
        ];
        let [global, local] = vit.forward_rows_of_two([
            ImageRows {
                pixels: &crops.global,
                masks: request.hidden,
                drop_path: plans[0].as_ref(),
                rows: &rows[0],
            },
            ImageRows {
                pixels: local,
                masks: None,
                drop_path: plans[1].as_ref(),
                rows: &rows[1],
            },
        ])?;
        Ok(CropOutputs {
            global: BackboneOutput::split(&global, request.places.len())?,
            local: Some(local),
        })
    }

    /// What the student sees of one size of crops: class tokens, and the patches at `places`.
    fn student_output(
        &self,
        pixels: &Tensor,
        hidden: Option<&Tensor>,
        pass: &Pass,
        places: &[u32],
    ) -> Result<BackboneOutput> {
        let plan = self.drop_path(pass, pixels)?;
        if pass.crops == Side::Global && self.config.backbone.patch_drop_rate > 0. {
            let visible = self.visible_patches(pixels.dim(0)?, pass)?;
            let cls = self
                .student
                .vit
                .forward_visible(pixels, plan.as_ref(), &visible)?;
            return Ok(BackboneOutput { cls, patches: None });
        }
        BackboneOutput::forward(&self.student.vit, pixels, hidden, plan.as_ref(), places)
    }

    /// Stochastic depth of a pass over `pixels`, where there is any.
    fn drop_path(&self, pass: &Pass, pixels: &Tensor) -> Result<Option<DropPathPlan>> {
        let backbone = &self.config.backbone;
        if backbone.drop_path_rate == 0. {
            return Ok(None);
        }
        let stream = format!("drop path of {}", pass.name);
        let plan = DropPathPlan::draw(
            backbone.drop_path_rate,
            backbone.drop_path_schedule(),
            DropPathMode::BatchSubset,
            backbone.depth,
            pixels.dim(0)?,
            &mut rng::stream(self.config.seed, &stream, pass.micro_batch),
        );
        Ok(Some(plan?))
    }

    /// The patches of `crops` global crops that a pass sees, as places in [crops, N], rising, as many of each crop.
    fn visible_patches(&self, crops: usize, pass: &Pass) -> Result<Vec<u32>> {
        let stream = format!("patch drop of {}", pass.name);
        let mut rng = rng::stream(self.config.seed, &stream, pass.micro_batch);
        let patches = self.config.grid()?.patches();
        let kept = patches as f64 * (1. - self.config.backbone.patch_drop_rate);
        let kept = (kept.round() as usize).clamp(1, patches);
        let of_crop = |crop: usize| {
            let mut visible = index::sample(&mut rng, patches, kept).into_vec();
            visible.sort_unstable();
            visible
                .into_iter()
                .map(move |patch| (crop * patches + patch) as u32)
        };
        Ok((0..crops).flat_map(of_crop).collect())
    }

    /// The terms of DINO, iBOT and KoLeo.
    fn self_distil(
        &mut self,
        crops: &Crops,
        micro_batch: u64,
        values: &StepValues,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let config = self.config.clone();
        let masks = crops.masks.as_ref().filter(|masks| !masks.indices.is_empty());

        let start = Instant::now();
        let vit = &self.teacher.vit;
        let teacher = BackboneOutput::forward(vit, &crops.global, None, None, places(masks))?;
        let cls_targets = match &self.teacher.dino_head {
            Some(head) if config.has_dino() => {
                let logits = head.forward(&teacher.cls)?;
                Some(self.cls_targets(&logits, values)?)
            }
            _ => None,
        };
        let patch_targets = match (self.teacher.patch_head(), &teacher.patches) {
            (Some(head), Some(patches)) if config.has_ibot() => {
                let logits = head.forward(patches)?;
                Some(self.patch_targets(&logits, values)?)
            }
            _ => None,
        };

        loss.teacher_seconds += self.clock.since(start)?;

        let targets = PrototypeTargets {
            cls: cls_targets,
            patch: patch_targets.zip(masks.map(|masks| masks.per_crop.clone())),
        };
        let request = ForwardRequest {
            hidden: masks.map(|masks| &masks.bits),
            places: places(masks),
            locals: targets.cls.is_some(),
        };
        let outputs = self.student_outputs(crops, &request, micro_batch)?;
        self.reconstruction_terms(crops, &outputs.global.cls, loss)?;
        self.prototype_terms(crops, &outputs, targets, loss)
    }

    /// What the class tokens of the global crops say of them.
    fn reconstruction_terms(&self, crops: &Crops, cls: &Tensor, loss: &mut StepLoss) -> Result<()> {
        let weights = &self.config.loss;
        if let Some(decoder) = &self.student.pixel_decoder {
            let pixels = reduced(&crops.global)?;
            let term = reconstruction_loss("pixels", &decoder.project(cls)?, &pixels);
            loss.push("pixels", &term?, weights.pixel_weight)?;
        }
        if let Some(decoder) = &self.student.hog_decoder {
            let histograms = hog_targets(&crops.global)?;
            let term = reconstruction_loss("hog", &decoder.project(cls)?, &histograms);
            loss.push("hog", &term?, weights.hog_weight)?;
        }
        Ok(())
    }

    /// The student's DINO, iBOT and KoLeo terms, given what its teacher saw.
    fn prototype_terms(
        &self,
        crops: &Crops,
        CropOutputs { global, local }: &CropOutputs,
        targets: PrototypeTargets,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let config = &self.config;
        let temperature = config.loss.student_temperature;
        if let (Some(head), Some(targets)) = (&self.student.dino_head, &targets.cls) {
            let points = ClassPoints::new(head, &global.cls, local.as_ref())?;
            let prototypes = head.prototypes()?;
            let logits = |points| Logits::Product {
                points,
                prototypes: &prototypes,
                compute: head.compute(),
            };
            let local = points.local.as_ref().map(logits);
            let terms = dino_cls_loss(logits(&points.global), local, targets, temperature);
            let terms = terms?;
            loss.push("dino_global", &terms.global, config.loss.dino_weight)?;
            if let Some(local) = &terms.local {
                loss.push("dino_local", local, config.loss.dino_weight)?;
            }
        }
        let patches = (&global.patches, &targets.patch);
        if let (Some(head), (Some(patches), Some((targets, per_crop)))) = (self.student.patch_head(), patches)
        {
            let logits = Logits::Product {
                points: &head.bottleneck(patches)?,
                prototypes: &head.prototypes()?,
                compute: head.compute(),
            };
            let term = ibot_patch_loss(logits, targets, per_crop, temperature);
            loss.push("ibot", &term?, config.loss.ibot_weight)?;
        }
        if config.loss.koleo_weight > 0. {
            for crop in 0..config.crops.global.count {
                let spread = global
                    .cls
                    .narrow(0, crop * crops.batch, crops.batch)
                    .and_then(|cls| koleo_loss(&cls, config.loss.koleo_group));
                let name = ["koleo_first", "koleo_second"][crop.min(1)];
                loss.push(name, &spread?, config.loss.koleo_weight)?;
            }
        }
        loss.cls_targets = targets.cls;
        Ok(())
    }

    fn cls_targets(&mut self, logits: &Tensor, values: &StepValues) -> candle_core::Result<Tensor> {
        targets(
            logits,
            values.teacher_temperature,
            self.memory.cls_centre.as_mut(),
            self.ranks.as_ref(),
        )
    }

    fn patch_targets(&mut self, logits: &Tensor, values: &StepValues) -> candle_core::Result<Tensor> {
        targets(
            logits,
            values.teacher_temperature,
            self.memory.patch_centre.as_mut(),
            self.ranks.as_ref(),
        )
    }

    /// The contrastive term: the first crop asks for the second, and the other way round where that is configured.
    fn contrast(
        &mut self,
        crops: &Crops,
        micro_batch: u64,
        values: &StepValues,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let settings = &self.config.loss.info_nce;
        let missing = || Error::failed("contrastive term", "the network has no projection");
        let view = |crop: usize| {
            let pixels = crops.global.narrow(0, crop * crops.batch, crops.batch);
            pixels.map_err(Error::from)
        };
        let views = [view(0)?, view(1)?];
        let directions: &[[usize; 2]] = if settings.symmetric {
            &[[0, 1], [1, 0]]
        } else {
            &[[0, 1]]
        };
        let weight = self.config.loss.info_nce_weight / directions.len() as f64;
        let mut keys_of_step = Vec::new();
        for &[query, key] in directions {
            let start = Instant::now();
            let vit = &self.teacher.vit;
            let head = self.teacher.projection.as_ref().ok_or_else(missing)?;
            let keys = head.forward(&BackboneOutput::forward(vit, &views[key], None, None, &[])?.cls)?;
            loss.teacher_seconds += self.clock.since(start)?;
            let name = ["first crop", "second crop"][query];
            let pass = Pass {
                name,
                crops: Side::Global,
                micro_batch,
            };
            let outputs = self.student_output(&views[query], None, &pass, &[])?;
            let head = self.student.projection.as_ref().ok_or_else(missing)?;
            let queries = head.forward(&outputs.cls)?;
            let queue = self.memory.queue.as_ref().ok_or_else(missing)?;
            let term = info_nce_loss(&queries, &keys, queue.keys(), values.info_nce_temperature);
            let name = ["info_nce", "info_nce_second"][query];
            loss.push(name, &term?, weight)?;
            keys_of_step.push(keys);
        }
        let queue = self.memory.queue.as_mut().ok_or_else(missing)?;
        for keys in keys_of_step {
            queue.push(&keys)?;
        }
        Ok(())
    }
}

impl Masks {
    /// Those of `crops` global crops, whose `bits` lie on the device.
    fn new(masks: &BatchMasks, bits: &Tensor, crops: usize) -> candle_core::Result<Self> {
        let patches = masks.masks.len() / crops.max(1);
        let ones = |crop: &[u8]| crop.iter().filter(|&&bit| bit == 1).count();
        Ok(Self {
            bits: bits.reshape((crops, patches))?,
            indices: masks.indices.clone(),
            per_crop: masks.masks.chunks_exact(patches).map(ones).collect(),
        })
    }
}

impl StepLoss {
    fn push(&mut self, name: &'static str, term: &Tensor, weight: f64) -> Result<()> {
        let weighted = (term * weight)?;
        self.terms.push((name, weighted));
        Ok(())
    }
}

impl Memory {
    fn new(config: &TrainConfig, device: &Device) -> Result<Self> {
        let loss = &config.loss;
        let centre = |prototypes: usize| {
            let zeros = Tensor::zeros((1, prototypes), candle_core::DType::F32, device);
            zeros
                .and_then(|zeros| SoftmaxCentering::new(&zeros, config.teacher.center_momentum))
                .map_err(Error::from)
        };
        let softmax = config.teacher.centering == Centering::Softmax;
        let patch_head = loss.ibot_head.as_ref().unwrap_or(&loss.head);
        let nce = &loss.info_nce;
        let queue = || {
            let mut rng = rng::stream(config.seed, "queue", 0);
            KeyQueue::random(nce.queue, nce.output, &mut rng, device).map_err(Error::from)
        };
        Ok(Self {
            cls_centre: (softmax && config.has_dino())
                .then(|| centre(loss.head.prototypes))
                .transpose()?,
            patch_centre: (softmax && config.has_ibot())
                .then(|| centre(patch_head.prototypes))
                .transpose()?,
            queue: config.has_info_nce().then(queue).transpose()?,
            relations: config
                .distill
                .as_ref()
                .filter(|distill| distill.has(Term::Relation))
                .map(|distill| {
                    // The class token speaks for an image where there is one.
                    let width = match distill.offer.cls {
                        0 => distill.offer.patch_mean,
                        width => width,
                    };
                    let start = |name, width| {
                        let mut rng = rng::stream(config.seed, name, 0);
                        KeyQueue::random(distill.relation_queue, width, &mut rng, device).map_err(Error::from)
                    };
                    Ok::<_, Error>(RelationQueues {
                        teacher: start(RELATION_TEACHER, width)?,
                        student: start(RELATION_STUDENT, config.backbone.embed_dim)?,
                    })
                })
                .transpose()?,
        })
    }
}

impl Memory {
    /// The tensors of a checkpoint.
    ///
    /// # Errors
    /// Failures of candle.
    pub fn tensors(&self) -> candle_core::Result<Tensors> {
        let mut tensors = Tensors::new();
        for (name, centre) in [(CLS_CENTRE, &self.cls_centre), (PATCH_CENTRE, &self.patch_centre)] {
            if let Some(centre) = centre {
                tensors.insert(name.to_owned(), centre.centre()?);
            }
        }
        if let Some(queue) = &self.queue {
            tensors.insert(QUEUE.to_owned(), queue.keys().clone());
        }
        if let Some(RelationQueues { teacher, student }) = &self.relations {
            tensors.insert(RELATION_TEACHER.to_owned(), teacher.keys().clone());
            tensors.insert(RELATION_STUDENT.to_owned(), student.keys().clone());
        }
        Ok(tensors)
    }

    /// Goes on from the tensors of a checkpoint.
    ///
    /// # Errors
    /// A tensor that is missing or misshapen.
    pub fn load(&mut self, tensors: &Tensors) -> Result<()> {
        let find = |name: &str, like: &Tensor| {
            let wrong = |found: String| {
                let reason = format!(
                    "expected shape {:?} in the checkpoint, found {found}",
                    like.dims()
                );
                Error::input(format!("memory.{name}"), reason)
            };
            let tensor = tensors.get(name).ok_or_else(|| wrong("none".to_owned()))?;
            if tensor.dims() != like.dims() {
                return Err(wrong(format!("{:?}", tensor.dims())));
            }
            tensor.to_device(like.device()).map_err(Error::from)
        };
        for (name, centre) in [
            (CLS_CENTRE, &mut self.cls_centre),
            (PATCH_CENTRE, &mut self.patch_centre),
        ] {
            if let Some(centre) = centre {
                let own = centre.centre()?;
                *centre = SoftmaxCentering::new(&find(name, &own)?, centre.momentum())?;
            }
        }
        let relations = self.relations.as_mut();
        let relations = relations.map(|RelationQueues { teacher, student }| {
            [(RELATION_TEACHER, teacher), (RELATION_STUDENT, student)]
        });
        let queues = self.queue.as_mut().map(|queue| (QUEUE, queue));
        for (name, queue) in queues.into_iter().chain(relations.into_iter().flatten()) {
            *queue = KeyQueue::from_keys(&find(name, queue.keys())?)?;
        }
        Ok(())
    }
}

/// Distributions of teacher logits: around a centre where there is one, by Sinkhorn-Knopp otherwise.
fn targets(
    logits: &Tensor,
    temperature: f64,
    centre: Option<&mut SoftmaxCentering>,
    ranks: &dyn Ranks,
) -> candle_core::Result<Tensor> {
    match centre {
        Some(centre) => centre.targets(logits, temperature, ranks),
        None => sinkhorn_knopp(logits, temperature, SINKHORN_ITERATIONS, ranks),
    }
}

/// Places of hidden patches in [2 B, N].
fn places(masks: Option<&Masks>) -> &[u32] {
    masks.map_or(&[], |masks| &masks.indices)
}

impl BackboneOutput {
    /// What `vit` sees of `pixels`, hidden where `hidden` says so: class tokens, and the patches at `places` in [B, N].
    fn forward(
        vit: &VisionTransformer,
        pixels: &Tensor,
        hidden: Option<&Tensor>,
        plan: Option<&DropPathPlan>,
        places: &[u32],
    ) -> Result<Self> {
        let rows = rows_of(vit, pixels, places)?;
        Self::split(&vit.forward_rows(pixels, hidden, plan, &rows)?, places.len())
    }

    /// `normed` [B + M, D] taken apart, M = `patches`.
    fn split(normed: &Tensor, patches: usize) -> Result<Self> {
        let images = normed.dim(0)? - patches;
        let cls = normed.narrow(0, 0, images)?;
        let patches = match patches {
            0 => None,
            count => Some(normed.narrow(0, images, count)?),
        };
        Ok(Self { cls, patches })
    }
}

/// The rows of class tokens, and of the patches at `places` in [B, N], among all tokens of `pixels`.
fn rows_of(vit: &VisionTransformer, pixels: &Tensor, places: &[u32]) -> Result<Vec<u32>> {
    let (batch, _, height, width) = pixels.dims4()?;
    let (rows, columns) = vit.config().grid(height, width)?;
    let (patches, before) = (rows * columns, 1 + vit.config().num_registers);
    let tokens = before + patches;
    let class = (0..batch).map(|image| image * tokens);
    let of_patch = places.iter().map(|&place| {
        let place = place as usize;
        place / patches * tokens + before + place % patches
    });
    Ok(class.chain(of_patch).map(|row| row as u32).collect())
}

/// Class tokens in the bottleneck of a head, from one pass of it.
struct ClassPoints {
    global: Tensor,        // [2 B, D]
    local: Option<Tensor>, // [L B, D]
}

impl ClassPoints {
    fn new(head: &DinoHead, global: &Tensor, local: Option<&Tensor>) -> Result<Self> {
        let Some(local) = local else {
            return Ok(Self {
                global: head.bottleneck(global)?,
                local: None,
            });
        };
        let all = Tensor::cat(&[global, local], 0)?;
        let points = head.bottleneck(&all)?;
        let (first, second) = (global.dim(0)?, local.dim(0)?);
        Ok(Self {
            global: points.narrow(0, 0, first)?,
            local: Some(points.narrow(0, first, second)?),
        })
    }
}
