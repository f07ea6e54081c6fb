//! Numbers that sum up predictions, one formula a file: each takes predictions, ranks or partitions and the truth and
//! gives fractions from 0 to 1 (the adjusted Rand index may fall below 0). Nothing here sees a feature.
//!
//! "Average precision" means four things in retrieval, and they are four functions: [`trapezoid_ap()`] (revisited Oxford
//! and Paris), [`ap_at()`] (Google Landmarks retrieval), [`gap()`] (recognition) and [`micro_ap()`] (copy detection).

pub mod ap_at;
pub mod classification;
pub mod confusion;
pub mod contingency;
pub mod depth;
pub mod gap;
pub mod iou;
pub mod matching;
pub mod micro_ap;
pub mod nmi;
pub mod precision_at;
pub mod rand_index;
pub mod ranks;
pub mod recall_at;
pub mod trapezoid_ap;

pub use ap_at::ap_at;
pub use gap::gap;
pub use micro_ap::micro_ap;
pub use trapezoid_ap::trapezoid_ap;
