use super::*;
use serde_json::json;

/// A run of `n` logged steps that looks like one.
fn synthetic(n: u32) -> Vec<Map<String, Value>> {
    let noise = |i: u32, salt: f64| (f64::from(i) * 12.9898 + salt).sin() * 43_758.547 % 1.0;
    let line = |i: u32| {
        let t = f64::from(i) / f64::from(n);
        let dino = 4.2 + 5.2 * (-6.0 * t).exp() + 0.25 * noise(i, 1.0);
        let ibot = 3.1 + 4.4 * (-3.0 * t).exp() + 0.2 * noise(i, 2.0);
        let koleo = -0.2 - 0.6 * t + 0.03 * noise(i, 3.0);
        let spike = if i.is_multiple_of(97) { 20.0 } else { 0.0 };
        let mut line = json!({
            "step": i * 50,
            "loss": dino + ibot + 0.1 * koleo,
            "loss_dino": dino,
            "loss_ibot": ibot,
            "loss_koleo": koleo,
            "lr": 5e-4 * (t / 0.1).min(1.0) * (0.5 + 0.5 * (std::f64::consts::PI * t).cos()),
            "weight_decay": 0.4 - 0.36 * (0.5 + 0.5 * (std::f64::consts::PI * t).cos()),
            "grad_norm": 1.2 + 1.5 * (-5.0 * t).exp() + 0.5 * noise(i, 4.0).abs() + spike,
            "images_per_second": 130.0 + 8.0 * noise(i, 5.0),
            "feature_std": 0.15 + 0.6 * t.sqrt() + 0.02 * noise(i, 6.0),
            "effective_rank": 4.0 + 90.0 * t.powf(0.7) + 2.0 * noise(i, 7.0),
            "teacher_entropy_share": 0.97 - 0.5 * t.sqrt() + 0.01 * noise(i, 8.0),
            "prototype_usage": 0.9 - 0.55 * t + 0.01 * noise(i, 9.0),
        });
        if i.is_multiple_of((n / 12).max(1)) {
            let top1 = 0.35 + 0.5 * t.powf(0.4);
            line["knn_top1"] = json!(top1);
            line["knn_low"] = json!(top1 - 0.025);
            line["knn_high"] = json!(top1 + 0.025);
        }
        line.as_object().expect("an object").clone()
    };
    (1..=n).map(line).collect()
}

fn drawn(metrics: &[Map<String, Value>]) -> image::RgbImage {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(CURVES_FILE);
    draw(&path, "runs/test", metrics).expect("drawn");
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1);
    let bytes = std::fs::read(&path).expect("read");
    let picture = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png);
    picture.expect("a PNG").to_rgb8()
}

/// Pixels of a colour within a panel's place.
fn count(picture: &image::RgbImage, place: u32, color: [u8; 3]) -> usize {
    let (x, y) = (
        MARGIN + place % COLUMNS * PANEL.0,
        HEADER + place / COLUMNS * PANEL.1,
    );
    let pixels = (0..PANEL.0).flat_map(|i| (0..PANEL.1).map(move |j| (x + i, y + j)));
    pixels
        .filter(|&(x, y)| picture.get_pixel(x, y).0 == color)
        .count()
}

const BLUE: [u8; 3] = [0x00, 0x72, 0xb2];
const ORANGE: [u8; 3] = [0xd5, 0x5e, 0x00];

#[test]
fn a_whole_run_fills_nine_panels() {
    let picture = drawn(&synthetic(400));
    assert_eq!(picture.dimensions(), size(9));
    assert_eq!(picture.dimensions(), (3 * 560 + 32, 64 + 3 * 340 + 16));
    assert_eq!(picture.get_pixel(2, 2).0, [255; 3]);
    for place in 0..9 {
        assert!(count(&picture, place, BLUE) > 200, "panel {place}");
    }
    // Two curves and more only in the panels of the losses and of the targets.
    assert!(count(&picture, 0, ORANGE) > 200 && count(&picture, 2, ORANGE) > 200);
    assert_eq!(count(&picture, 3, ORANGE), 0);
}

#[test]
fn panels_without_numbers_are_left_out() {
    let lines: Vec<_> = [
        json!({"step": 1, "loss": 2.0, "lr": null}),
        json!({"step": 2, "loss": f64::NAN}),
    ]
    .iter()
    .map(|line| line.as_object().expect("an object").clone())
    .collect();
    let picture = drawn(&lines);
    assert_eq!(picture.dimensions(), size(1));
    assert!(count(&picture, 0, BLUE) > 10);
}

#[test]
fn parts_of_the_loss_are_found_by_name() {
    let panels = panels(&synthetic(40));
    let names: Vec<&str> = panels[0]
        .series
        .iter()
        .map(|series| series.name.as_str())
        .collect();
    assert_eq!(names, ["total", "dino", "ibot", "koleo"]);
}

#[test]
fn nothing_to_draw_is_said_and_nothing_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(CURVES_FILE);
    let error = draw(&path, "run", &[]).expect_err("refused").to_string();
    assert!(error.contains("at least one logged step"), "{error}");
    assert!(!path.exists());
}
