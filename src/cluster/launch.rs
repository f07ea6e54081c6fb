//! Who started this process, and as which of how many: what launchers leave in the environment.

use std::fmt;

use crate::{Error, Result};

/// A program that starts the processes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `mpiexec` of Open MPI.
    OpenMpi,
    /// `mpiexec` of MPICH and its kin (Hydra).
    Hydra,
    /// `srun` of Slurm.
    Slurm,
    /// `torchrun` of PyTorch.
    Torchrun,
}

/// The variables of a launcher.
struct Variables {
    launcher: Launcher,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

/// The order matters: `mpiexec` runs below `srun`, and then it is what connects the processes. `SLURM_NTASKS` is set in a batch
/// script too, outside of every `srun`; the step's own number of tasks is not. `srun --mpi=pmi2` sets the first two of Hydra's as well.
const LAUNCHERS: [Variables; 4] = [
    Variables {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Variables {
        launcher: Launcher::Hydra,
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_size: "MPI_LOCALNRANKS",
    },
    Variables {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_size: "SLURM_STEP_TASKS_PER_NODE",
    },
    Variables {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_size: "LOCAL_WORLD_SIZE",
    },
];

/// This process's place among those that its launcher started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Who started it.
    pub launcher: Launcher,
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are, at least 1.
    pub size: usize,
    /// Its number among those of this machine; its rank where the launcher does not say.
    pub local_rank: usize,
    /// How many there are on this machine; none where the launcher does not say.
    pub local_size: Option<usize>,
}

impl Launch {
    /// How this process was started; none where no launcher did.
    ///
    /// # Errors
    /// Variables of a launcher that contradict each other.
    pub fn of_this_process() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`Launch::of_this_process`], where the environment is `variable`.
    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for names in LAUNCHERS {
            let Some(size) = number(names.size, &variable)? else {
                continue;
            };
            if names.launcher == Launcher::Hydra && is_of_slurm(&variable) {
                continue;
            }
            let Some(rank) = number(names.rank, &variable)? else {
                let reason = format!("expected it beside {}={size}, found none", names.size);
                return Err(Error::input(names.rank, reason));
            };
            if rank >= size {
                let reason = format!("expected less than {}={size}, found {rank}", names.size);
                return Err(Error::input(names.rank, reason));
            }
            return Ok(Some(Self {
                launcher: names.launcher,
                rank,
                size,
                local_rank: number(names.local_rank, &variable)?.unwrap_or(rank),
                // Slurm's may be a list such as `4(x2)`: of use where all machines have as many.
                local_size: variable(names.local_size)
                    .and_then(|text| text.split('(').next().unwrap_or("").parse().ok())
                    .filter(|&local| local > 0),
            }));
        }
        Ok(None)
    }

    /// Why a library that finds `rank` of `size` processes is not this launcher's; none where it is.
    pub(super) fn refusal(&self, rank: usize, size: usize) -> Option<String> {
        if (rank, size) == (self.rank, self.size) {
            return None;
        }
        Some(format!(
            "expected rank {} of the {} processes that {} started, found rank {rank} of {size}; {}",
            self.rank,
            self.size,
            self.launcher,
            apart()
        ))
    }

    /// Why a library that calls itself `version` is not this launcher's; none where it may be.
    pub(super) fn other_library(&self, version: &str) -> Option<String> {
        let of_open_mpi = version.starts_with("Open MPI");
        let fits = match self.launcher {
            Launcher::OpenMpi => of_open_mpi,
            Launcher::Hydra => !of_open_mpi,
            Launcher::Slurm | Launcher::Torchrun => true,
        };
        (!fits).then(|| {
            format!(
                "expected the library of {}, which started {} processes; {}",
                self.launcher,
                self.size,
                apart()
            )
        })
    }
}

/// Whether Hydra's variables are those that Slurm sets for libraries which know Hydra's: with the numbers of its own, and without what
/// says which process of its machine this is.
fn is_of_slurm(variable: &impl Fn(&str) -> Option<String>) -> bool {
    let same = |one: &str, other: &str| variable(one).is_some() && variable(one) == variable(other);
    same("PMI_RANK", "SLURM_PROCID")
        && same("PMI_SIZE", "SLURM_STEP_NUM_TASKS")
        && variable("MPI_LOCALRANKID").is_none()
}

/// What to do where a library and a launcher do not belong together.
fn apart() -> String {
    format!(
        "start with the library's own mpiexec, or name the launcher's library in {}",
        super::locate::VARIABLE
    )
}

/// The number in the variable `name`; none where it is not set.
fn number(name: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<Option<usize>> {
    let Some(text) = variable(name) else {
        return Ok(None);
    };
    match text.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(Error::input(name, format!("expected a number, found `{text}`"))),
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenMpi => "mpiexec of Open MPI",
            Self::Hydra => "mpiexec of MPICH (Hydra)",
            Self::Slurm => "srun of Slurm",
            Self::Torchrun => "torchrun",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables = &'static [(&'static str, &'static str)];

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::from_variables(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        let cases: [(Variables, Launcher, Option<usize>); 6] = [
            (
                &[
                    ("OMPI_COMM_WORLD_RANK", "3"),
                    ("OMPI_COMM_WORLD_SIZE", "4"),
                    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
                    ("SLURM_PROCID", "0"),
                    ("SLURM_STEP_NUM_TASKS", "1"),
                ],
                Launcher::OpenMpi,
                Some(2),
            ),
            (
                &[("PMI_RANK", "3"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "1")],
                Launcher::Hydra,
                None,
            ),
            (
                &[
                    ("SLURM_PROCID", "3"),
                    ("SLURM_STEP_NUM_TASKS", "4"),
                    ("SLURM_LOCALID", "1"),
                    ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
                ],
                Launcher::Slurm,
                Some(2),
            ),
            (
                &[
                    ("PMI_RANK", "3"),
                    ("PMI_SIZE", "4"),
                    ("SLURM_PROCID", "3"),
                    ("SLURM_STEP_NUM_TASKS", "4"),
                    ("SLURM_LOCALID", "1"),
                    ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
                ],
                Launcher::Slurm,
                Some(2),
            ),
            (
                &[
                    ("PMI_RANK", "3"),
                    ("PMI_SIZE", "4"),
                    ("MPI_LOCALRANKID", "1"),
                    ("SLURM_PROCID", "3"),
                    ("SLURM_STEP_NUM_TASKS", "4"),
                ],
                Launcher::Hydra,
                None,
            ),
            (
                &[("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")],
                Launcher::Torchrun,
                None,
            ),
        ];
        for (variables, launcher, local_size) in cases {
            let expected = Launch {
                launcher,
                rank: 3,
                size: 4,
                local_rank: 1,
                local_size,
            };
            assert_eq!(launch(variables).unwrap(), Some(expected));
        }
    }

    #[test]
    fn a_batch_script_of_slurm_is_no_job_of_many() {
        let script = [
            ("SLURM_NTASKS", "4"),
            ("SLURM_PROCID", "0"),
            ("SLURM_JOB_ID", "7"),
        ];
        assert_eq!(launch(&script).unwrap(), None);
        assert_eq!(launch(&[]).unwrap(), None);
    }

    #[test]
    fn variables_that_contradict_each_other_are_named() {
        for (variables, message) in [
            (
                vec![("PMI_RANK", "4"), ("PMI_SIZE", "4")],
                "PMI_RANK: expected less than PMI_SIZE=4, found 4",
            ),
            (
                vec![("PMI_SIZE", "4")],
                "PMI_RANK: expected it beside PMI_SIZE=4, found none",
            ),
            (
                vec![("RANK", "0"), ("WORLD_SIZE", "two")],
                "WORLD_SIZE: expected a number, found `two`",
            ),
        ] {
            assert_eq!(launch(&variables).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_library_that_finds_each_process_alone_is_refused_by_name() {
        let started = launch(&[("PMI_RANK", "1"), ("PMI_SIZE", "4")]).unwrap().unwrap();
        assert_eq!(started.refusal(1, 4), None);
        let reason = started.refusal(0, 1).unwrap();
        assert!(
            reason.starts_with(
                "expected rank 1 of the 4 processes that mpiexec of MPICH (Hydra) started, found rank 0 of 1"
            ),
            "{reason}"
        );
        assert_eq!(started.other_library("MPICH 5.0.2"), None);
        assert_eq!(started.other_library("Intel(R) MPI Library 2021.9"), None);
        let reason = started.other_library("Open MPI v5.0.11").unwrap();
        assert!(
            reason.starts_with("expected the library of mpiexec of MPICH (Hydra), which started 4 processes"),
            "{reason}"
        );
    }
}
