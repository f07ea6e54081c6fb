//! Pictures: that they are drawn, show what they should, and that wrong input is named.

use std::fs;

use crate::harness::{Workspace, golden, names};

/// Colours of a PNG and its size.
fn picture(w: &Workspace, name: &str) -> image::RgbImage {
    image::open(w.path(name)).expect("a picture").to_rgb8()
}

fn count(picture: &image::RgbImage, color: [u8; 3]) -> usize {
    picture.pixels().filter(|pixel| pixel.0 == color).count()
}

const BLUE: [u8; 3] = [0x00, 0x72, 0xb2];
const ORANGE: [u8; 3] = [0xd5, 0x5e, 0x00];

/// Those of other families: CLIP's and DINOv3's attention, and of SigLIP, which has no class token to look from, patches alone.
#[test]
fn patches_and_attention_of_other_families() {
    let w = Workspace::new();
    for (name, attends) in [
        ("clip_hf", true),
        ("dinov3_hf", true),
        ("beit_hf", true),
        ("siglip_hf", false),
    ] {
        let model = golden("backbones").join(name).display().to_string();
        let look = format!("--model {model} --data sample:test --rows 0,5 --tile 64 --force");
        w.succeeds(&format!(
            "viz pca {look} --n 2 --foreground all --out {name}-pca.png"
        ));
        let (width, _) = picture(&w, &format!("{name}-pca.png")).dimensions();
        assert!(width > 128, "{name}: {width}");
        if !attends {
            w.fails(2, &format!("viz attention {look} --out no.png"), &["class token"]);
            continue;
        }
        let text = w
            .succeeds(&format!("viz attention {look} --out {name}.png"))
            .stdout;
        assert!(text.contains("2 heads"), "{name}: {text}");
        let brightest = count(&picture(&w, &format!("{name}.png")), [252, 255, 164]);
        assert!(brightest > 0, "{name}: each map reaches its greatest value");
    }
}

#[test]
fn patches_and_attention_of_a_checkpoint() {
    let w = Workspace::new();
    let checkpoint = golden("official_reg4.safetensors").display().to_string();
    let model = format!("--model {checkpoint} --heads 3 --data sample:test");
    let run = w.succeeds(&format!(
        "viz pca {model} --n 3 --foreground all --out pca.png --tile 64 --columns 2 --json"
    ));
    assert_eq!(run.json()["foreground"], 1.0);
    let once = fs::read(w.path("pca.png")).expect("written");
    w.succeeds(&format!(
        "viz pca {model} --n 3 --foreground all --out pca.png --tile 64 --columns 2 --force --threads 1"
    ));
    assert!(
        once == fs::read(w.path("pca.png")).expect("written"),
        "the same picture"
    );
    // Two rows of two pairs, the second half empty: title, notes, and 64 pixels with a caption each.
    assert_eq!(picture(&w, "pca.png").dimensions(), (420, 102 + 2 * 96 - 12 + 28));
    let run = w.succeeds(&format!(
        "viz attention {model} --rows 5,0 --out attention.png --tile 64"
    ));
    assert!(run.stdout.contains("3 heads"), "{}", run.stdout);
    assert!(
        count(&picture(&w, "attention.png"), [252, 255, 164]) > 0,
        "each map reaches its greatest value"
    );
    assert_eq!(names(&w.path("")), ["attention.png", "pca.png"]);

    w.fails(
        2,
        &format!("viz attention {model} --block 99 --out x.png"),
        &["block", "99"],
    );
    w.fails(
        2,
        &format!("viz pca {model} --rows 1000 --out x.png"),
        &["--rows", "1000"],
    );
    w.fails(
        2,
        &format!("viz pca {model} --threshold 2 --out x.png"),
        &["--threshold", "2"],
    );
    w.fails(
        2,
        &format!("viz pca {model} --columns 0 --out x.png"),
        &["--columns"],
    );
    w.fails(
        2,
        &format!("viz pca {model} --tile 4 --out x.png"),
        &["--tile", "4"],
    );
    w.fails(2, &format!("viz pca {model} --out x.jpg"), &["--out", ".png"]);
    w.fails(
        2,
        &format!("viz pca {model} --out pca.png"),
        &["pca.png", "--force"],
    );
    w.fails(
        2,
        "viz pca --model pixels --data sample:test --out x.png",
        &["pixels", "patch"],
    );
    w.fails(
        2,
        "viz attention --model pixels --data sample:test --out x.png",
        &["pixels", "checkpoint"],
    );
    w.fails(
        2,
        "viz attention --model no.pth --data sample:test --out x.png",
        &["no.pth"],
    );
    w.fails(
        2,
        &format!("viz attention --model {checkpoint} --heads 3 --data nowhere --out x.png"),
        &["nowhere"],
    );
    assert_eq!(names(&w.path("")), ["attention.png", "pca.png"]);
}

/// Six images in two classes, and features that put the last one on the wrong side.
fn images(w: &Workspace) {
    for i in 0..6u8 {
        w.png(
            &format!("images/{}/{i}.png", if i < 3 { "cat" } else { "dog" }),
            20,
            20,
            40 * i,
        );
    }
    w.succeeds("extract --model pixels --data images --out pixels --crop 20");
}

#[test]
fn neighbours_are_marked() {
    let w = Workspace::new();
    images(&w);
    let run = w.succeeds(
        "viz neighbours --features pixels --data images --rows 0,5 --k 2 --tile 64 --out n.png --json",
    );
    let json = run.json();
    assert_eq!(json["labelled"], 4);
    let right = json["right"].as_u64().expect("a number");
    let drawn = picture(&w, "n.png");
    assert_eq!(count(&drawn, BLUE) > 0, right > 0);
    assert_eq!(count(&drawn, ORANGE) > 0, right < 4);
    w.succeeds("viz neighbours --features pixels --data images --query pixels --query-data images --k 6 --n 2 --out q.png");

    w.fails(
        2,
        "viz neighbours --features pixels --data images --k 6 --out x.png",
        &["--k", "6", "5"],
    );
    w.fails(
        2,
        "viz neighbours --features pixels --data images --k 0 --out x.png",
        &["--k", "0"],
    );
    w.fails(
        2,
        "viz neighbours --features pixels --data sample:test --out x.png",
        &["sample:test", "cat/0.png"],
    );
    w.fails(
        2,
        "viz neighbours --features pixels --data images --rows 6 --out x.png",
        &["--rows", "6"],
    );
    w.fails(
        2,
        "viz neighbours --features images --data images --out x.png",
        &["images", "meta.json"],
    );
    w.fails(
        2,
        "viz neighbours --features pixels --data images --column patch --out x.png",
        &["patch"],
    );
    w.fails(
        2,
        "viz neighbours --features pixels --data images --query pixels --out x.png",
        &["--query-data"],
    );
}

#[test]
fn a_map_has_its_classes() {
    let w = Workspace::new();
    w.two_classes("features", 40, 4);
    let json = w
        .succeeds("viz map --features features --out map.png --json")
        .json();
    let explained: Vec<f64> = json["explained"]
        .as_array()
        .expect("shares")
        .iter()
        .map(|share| share.as_f64().expect("a share"))
        .collect();
    assert!(explained.len() == 2 && explained[0] > 0.9, "{explained:?}");
    let drawn = picture(&w, "map.png");
    assert!(
        count(&drawn, BLUE) > 20 && count(&drawn, ORANGE) > 20,
        "the legend's dots"
    );
    let run = "viz map --features features --method tsne --perplexity 8 --iterations 300";
    let json = w.succeeds(&format!("{run} --out tsne.png --json")).json();
    assert_eq!(json["explained"], serde_json::json!([]));
    let drawn = picture(&w, "tsne.png");
    assert!(count(&drawn, BLUE) > 20 && count(&drawn, ORANGE) > 20);
    w.succeeds(&format!("{run} --out again.png"));
    assert_eq!(
        std::fs::read(w.path("tsne.png")).ok(),
        std::fs::read(w.path("again.png")).ok()
    );
    w.fails(
        2,
        &format!("{run} --n 9 --out x.png"),
        &["perplexity", "2.7", "8"],
    );
    w.fails(2, "viz map --features features --n 0 --out x.png", &["--n", "0"]);
    w.fails(2, "viz map --features nowhere --out x.png", &["nowhere"]);
    let same: Vec<(Option<&str>, Vec<f32>)> = vec![(None, vec![1.0, 2.0]); 3];
    w.features("same", &same);
    w.fails(2, "viz map --features same --out x.png", &["all equal"]);
}
