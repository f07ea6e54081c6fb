//! Sums of tensors that stay on GPUs: NCCL, a library that is found (`locate`) and loaded (`abi`) at run time. What is no tensor of a GPU
//! goes the way by which the ranks are connected anyway, MPI or TCP, and so does the identifier by which NCCL's ranks find each other.
//!
//! The part that needs candle's GPU is `on_gpu`, of builds with CUDA alone.

#[cfg(unix)]
mod abi;
#[cfg(all(unix, any(test, feature = "cuda")))]
mod communicator;
mod locate;
#[cfg(all(unix, feature = "cuda"))]
mod on_gpu;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::Ranks;
use crate::device::CUDA_TRAINER;
use crate::{Error, Result};

/// What a rank brings to the question whether all use NCCL.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Offer {
    /// Its machine.
    host: String,
    /// What its GPU is known by on that machine; none on the processor.
    gpu: Option<String>,
    /// The version of its NCCL, or why it has none.
    nccl: std::result::Result<String, String>,
}

/// What all ranks do about it.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Sums stay on GPUs.
    Connect,
    /// There are no GPUs.
    NoGpus,
    /// They go by way of the host's memory, for this reason.
    Host(String),
}

impl Decision {
    fn of(offers: &[Offer]) -> Self {
        if offers.iter().all(|offer| offer.gpu.is_none()) {
            return Self::NoGpus;
        }
        let named = |rank: usize| format!("rank {rank} on {}", offers[rank].host);
        for (rank, offer) in offers.iter().enumerate() {
            let Some(gpu) = &offer.gpu else {
                return Self::Host(format!("{} has no GPU", named(rank)));
            };
            let version = match &offer.nccl {
                Ok(version) => version,
                Err(reason) => return Self::Host(format!("{}: {reason}", named(rank))),
            };
            if let Ok(first) = &offers[0].nccl
                && first != version
            {
                let reason = format!(
                    "expected one NCCL, found {first} at rank 0 and {version} at {}",
                    named(rank)
                );
                return Self::Host(reason);
            }
            let same = |other: &Offer| other.host == offer.host && other.gpu.as_ref() == Some(gpu);
            if let Some(other) = offers[..rank].iter().position(same) {
                let reason = format!(
                    "ranks {other} and {rank} share a GPU of {}, which NCCL does not do",
                    offer.host
                );
                return Self::Host(reason);
            }
        }
        Self::Connect
    }
}

/// `ranks` with sums of tensors that stay on `device`, where all ranks have a GPU of their own and NCCL; else as they are, and the first
/// rank says why. All ranks call it.
///
/// # Errors
/// A library that is named and cannot be used, ranks that cannot reach each other, what NCCL has against connecting them.
pub(super) fn on_device(ranks: Arc<dyn Ranks>, device: &Device) -> Result<Arc<dyn Ranks>> {
    let loaded = match device.is_cuda() {
        true => load(),
        false => Err("its network is on the processor".to_owned()),
    };
    if let Err(reason) = &loaded
        && device.is_cuda()
        && std::env::var_os(locate::VARIABLE).is_some_and(|named| !named.is_empty())
    {
        return Err(Error::input(locate::VARIABLE, reason.clone()));
    }
    let offer = Offer {
        host: super::host(),
        gpu: gpu_of(device)?,
        nccl: loaded.as_ref().map(Loaded::version).map_err(Clone::clone),
    };
    let own = serde_json::to_vec(&offer).map_err(|error| Error::failed("NCCL", error.to_string()))?;
    let offers = ranks.gather_bytes(&own)?;
    let offers: Vec<Offer> = offers
        .iter()
        .map(|bytes| serde_json::from_slice(bytes))
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| Error::failed("NCCL", error.to_string()))?;
    match (Decision::of(&offers), loaded) {
        (Decision::Connect, Ok(loaded)) => connect(loaded, ranks, device),
        (Decision::Host(reason), _) => {
            if ranks.rank() == 0 {
                tracing::warn!("sums of GPUs go by way of the host's memory, which is slow: {reason}");
            }
            Ok(ranks)
        }
        _ => Ok(ranks),
    }
}

/// A library that has been loaded.
struct Loaded {
    path: PathBuf,
    origin: &'static str,
    #[cfg(unix)]
    api: abi::Api,
}

impl Loaded {
    #[cfg(unix)]
    fn version(&self) -> String {
        self.api.version.to_string()
    }

    #[cfg(not(unix))]
    fn version(&self) -> String {
        String::new()
    }
}

/// Finds and loads the library, or says why not.
fn load() -> std::result::Result<Loaded, String> {
    let found = locate::locate().map_err(|error| error.to_string())?;
    let Some(found) = found else {
        return Err("no NCCL was found; run `macula runtime install --flavor nccl`".to_owned());
    };
    #[cfg(unix)]
    return match abi::Api::load(&found.path) {
        Ok(api) => Ok(Loaded {
            path: found.path,
            origin: found.origin,
            api,
        }),
        Err(reason) => Err(format!("{} {reason}", found.path.display())),
    };
    #[cfg(not(unix))]
    Err(format!("{}: NCCL is for Linux", found.path.display()))
}

#[cfg(all(unix, feature = "cuda"))]
fn connect(loaded: Loaded, ranks: Arc<dyn Ranks>, device: &Device) -> Result<Arc<dyn Ranks>> {
    let library = format!("NCCL {} ({})", loaded.version(), loaded.path.display());
    let Device::Cuda(gpu) = device else {
        return Ok(ranks);
    };
    Ok(Arc::new(on_gpu::Nccl::connect(loaded.api, library, ranks, gpu)?))
}

/// In a build without CUDA no rank has a GPU.
#[cfg(not(all(unix, feature = "cuda")))]
fn connect(_: Loaded, ranks: Arc<dyn Ranks>, _: &Device) -> Result<Arc<dyn Ranks>> {
    Ok(ranks)
}

/// What `device` is known by, whatever number it has for a process.
#[cfg(feature = "cuda")]
fn gpu_of(device: &Device) -> Result<Option<String>> {
    let Device::Cuda(gpu) = device else {
        return Ok(None);
    };
    let uuid = gpu.cuda_stream().context().uuid();
    let uuid = uuid.map_err(|error| Error::failed("GPU", error.to_string()))?;
    Ok(Some(format!("{:?}", uuid.bytes)))
}

/// As in a build with CUDA.
#[cfg(not(feature = "cuda"))]
fn gpu_of(_: &Device) -> Result<Option<String>> {
    Ok(None)
}

/// What `macula doctor` says of NCCL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NcclReport {
    /// The library that a run on many GPUs would use here.
    pub library: Option<PathBuf>,
    /// How it was found.
    pub origin: Option<&'static str>,
    /// Its version.
    pub version: Option<String>,
    /// Why there is none, or none that can be used.
    pub problem: Option<String>,
}

impl NcclReport {
    /// Looks around, and loads what is found.
    pub fn gather() -> Self {
        match load() {
            Ok(loaded) => Self {
                version: Some(loaded.version()),
                library: Some(loaded.path),
                origin: Some(loaded.origin),
                problem: None,
            },
            Err(problem) => Self {
                library: None,
                origin: None,
                version: None,
                problem: Some(problem),
            },
        }
    }
}

impl fmt::Display for NcclReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |value: &str| writeln!(f, "{:<20} {value}", "NCCL");
        match (&self.library, self.origin, &self.version, &self.problem) {
            (Some(library), Some(origin), Some(version), _) => {
                line(&format!("{version}, {} ({origin})", library.display()))
            }
            // Of use to a build with CUDA, and to who has named one.
            (.., Some(problem)) if CUDA_TRAINER || problem.starts_with(locate::VARIABLE) => {
                line(&format!("none; {problem}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::simulated::{Network, on_ranks};

    fn offer(host: &str, gpu: &str, nccl: std::result::Result<&str, &str>) -> Offer {
        Offer {
            host: host.to_owned(),
            gpu: (!gpu.is_empty()).then(|| gpu.to_owned()),
            nccl: nccl.map(str::to_owned).map_err(str::to_owned),
        }
    }

    #[test]
    fn nccl_is_used_where_all_ranks_have_a_gpu_of_their_own_and_one_version() {
        let good = [
            offer("a", "1", Ok("2.32.3")),
            offer("a", "2", Ok("2.32.3")),
            offer("b", "1", Ok("2.32.3")),
        ];
        assert_eq!(Decision::of(&good), Decision::Connect);
        let with = |rank: usize, other: Offer| {
            let mut offers = good.clone();
            offers[rank] = other;
            Decision::of(&offers)
        };
        let host = |reason: &str| Decision::Host(reason.to_owned());
        for (decision, expected) in [
            (
                with(1, offer("a", "1", Ok("2.32.3"))),
                "ranks 0 and 1 share a GPU of a, which NCCL does not do",
            ),
            (with(2, offer("b", "", Err("cpu"))), "rank 2 on b has no GPU"),
            (
                with(2, offer("b", "1", Err("no NCCL was found"))),
                "rank 2 on b: no NCCL was found",
            ),
            (
                with(1, offer("a", "2", Ok("2.20.5"))),
                "expected one NCCL, found 2.32.3 at rank 0 and 2.20.5 at rank 1 on a",
            ),
        ] {
            assert_eq!(decision, host(expected));
        }
        let processors = [offer("a", "", Err("cpu")), offer("b", "", Err("cpu"))];
        assert_eq!(Decision::of(&processors), Decision::NoGpus);
    }

    #[test]
    fn ranks_on_processors_stay_as_they_are() {
        let found = on_ranks(2, Network::default(), |ranks| {
            let found = on_device(Arc::clone(&ranks), &Device::Cpu).unwrap();
            Arc::ptr_eq(&found, &ranks)
        });
        assert_eq!(found, [true, true]);
    }

    /// The pinned library itself: it needs no GPU to be loaded, to make an identifier and to say why it cannot connect.
    #[test]
    #[cfg(unix)]
    #[ignore = "needs NCCL (MACULA_NCCL_LIB)"]
    fn the_library_is_loaded_and_says_what_it_lacks() {
        let report = NcclReport::gather();
        println!("{report}");
        assert_eq!(report.origin, Some(locate::VARIABLE), "{report:?}");
        let loaded = load().unwrap();
        let api = Arc::new(loaded.api);
        let [first, second] = [(); 2].map(|()| communicator::unique_id(&api).unwrap());
        assert_ne!(first.0, second.0);
        match communicator::Communicator::start(api, first, 0, 1) {
            Ok(communicator) => communicator.finish().unwrap(),
            Err(error) => {
                println!("{error}");
                assert!(
                    error.to_string().contains("ncclCommInitRank failed on rank 0: "),
                    "{error}"
                );
            }
        }
    }
}
