//! The processor's wide instructions, which decide what is fast.

/// The instruction sets of this processor that matter for speed, in a fixed order, under Linux's names: `avx2`, `fma`,
/// `avx512f`, `avx512_bf16`, `avx512_fp16`, `amx_tile`, `amx_bf16`, `amx_fp16`; `neon`, `fp16`, `bf16` on ARM.
pub fn cpu_features() -> Vec<String> {
    detected()
        .iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| (*name).to_owned())
        .collect()
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Vec<(&'static str, bool)> {
    let mut features = vec![
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512_bf16", std::is_x86_feature_detected!("avx512bf16")),
        ("avx512_fp16", std::is_x86_feature_detected!("avx512fp16")),
    ];
    // The stable standard library does not detect AMX; Linux lists it, elsewhere it stays unknown.
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let listed = |feature: &str| flags.split_whitespace().any(|flag| flag == feature);
    features.extend(["amx_tile", "amx_bf16", "amx_fp16"].map(|feature| (feature, listed(feature))));
    features
}

#[cfg(target_arch = "aarch64")]
fn detected() -> Vec<(&'static str, bool)> {
    vec![
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected() -> Vec<(&'static str, bool)> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_named_once_and_build_on_each_other() {
        let features = cpu_features();
        let has = |name: &str| features.iter().filter(|feature| *feature == name).count();
        assert!(features.iter().all(|feature| has(feature) == 1));
        assert!(has("avx512_bf16") <= has("avx512f") && has("amx_bf16") <= has("amx_tile"));
        if cfg!(target_arch = "aarch64") {
            assert_eq!(has("neon"), 1);
        }
    }
}
