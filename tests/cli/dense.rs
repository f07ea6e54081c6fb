//! Segmentation and depth from lists of images with masks or depths.

use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage};

use crate::harness::{Workspace, golden, names};

/// Short training of a head.
const QUICK: &str =
    "--iterations 200 --learning-rates 0.01,0.1 --val-fraction 0.25 --bootstrap-resamples 50 --json";

/// Writes `n` images of `width` x `height` with a rectangle in each, their masks (0, 1 in the rectangle, a line of 255), their
/// depths in millimetres (nearer where brighter), and the list `NAME.csv`.
fn scenes(w: &Workspace, name: &str, n: u32, width: u32, height: u32) {
    let mut list = "image,mask,depth\n".to_owned();
    for i in 0..n {
        let (left, top) = (i * 5 % (width / 2), i * 3 % (height / 2));
        let inside =
            |x: u32, y: u32| (left..left + width / 2).contains(&x) && (top..top + height / 2).contains(&y);
        let shade = 40 + (i * 37 % 100) as u8;
        let pixel = |x, y| {
            if inside(x, y) {
                Rgb([200, shade, 60])
            } else {
                Rgb([30, shade, 180])
            }
        };
        let label = |x, y| {
            if y == height - 1 {
                255
            } else {
                u8::from(inside(x, y))
            }
        };
        let depth = |x, y| {
            if x == 0 {
                0
            } else if inside(x, y) {
                1000 + 10 * u16::from(shade)
            } else {
                4000
            }
        };
        let files = ["image", "mask", "depth"].map(|kind| format!("{name}/{kind}{i}.png"));
        std::fs::create_dir_all(w.path(name)).expect("created");
        RgbImage::from_fn(width, height, pixel)
            .save(w.path(&files[0]))
            .expect("saved");
        GrayImage::from_fn(width, height, |x, y| Luma([label(x, y)]))
            .save(w.path(&files[1]))
            .expect("saved");
        ImageBuffer::<Luma<u16>, Vec<u16>>::from_fn(width, height, |x, y| Luma([depth(x, y)]))
            .save(w.path(&files[2]))
            .expect("saved");
        list += &(files.join(",") + "\n");
    }
    w.write(&format!("{name}.csv"), list);
}

fn number(row: &serde_json::Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}"))
}

#[test]
fn colours_segment_what_they_tell() {
    let w = Workspace::new();
    scenes(&w, "train", 12, 24, 20);
    scenes(&w, "test", 5, 24, 20);
    let eval = format!("eval segment --model pixels --train-data train.csv --test-data test.csv {QUICK}");
    let run = w.succeeds(&format!("{eval} --classes ground,thing --out r"));
    let result = run.json();
    let rows = result["rows"].as_array().expect("rows");
    let classes: Vec<&str> = rows
        .iter()
        .map(|row| row["class"].as_str().expect("a name"))
        .collect();
    assert_eq!(classes, ["ground", "thing", "mean"]);
    for row in rows {
        assert!(number(row, "iou") > 0.99, "{row}");
        assert!(
            number(row, "iou_low") <= number(row, "iou") && number(row, "iou") <= number(row, "iou_high"),
            "{row}"
        );
    }
    // One line in twenty is left out.
    assert_eq!(rows[2]["n_pixels"], 5 * 24 * 19);
    assert_eq!(
        result["settings"]["left_out_pixels"],
        serde_json::json!({ "train": 12 * 24, "test": 5 * 24 })
    );
    for side in [
        "train masks: label 255 (--ignore) left out: 288 of 5760 pixels, in 12 of 12 masks",
        "test masks: label 255 (--ignore) left out: 120 of 2400 pixels, in 5 of 5 masks",
    ] {
        assert!(run.stderr.contains(side), "{}", run.stderr);
    }
    assert!(number(&rows[2], "pixel_accuracy") > 0.99);
    assert_eq!((&result["n_train"], &result["n_test"]), (&12.into(), &5.into()));
    assert_eq!(result["settings"]["grid"], serde_json::json!([20, 24]));
    assert_eq!(
        names(&w.path("r")),
        [
            "images.csv",
            "result.json",
            "table.csv",
            "table.md",
            "table.parquet"
        ]
    );
    let images = std::fs::read_to_string(w.path("r/images.csv")).expect("read");
    assert_eq!(images.lines().next(), Some("row,path,mean_iou,pixel_accuracy"));
    assert_eq!(images.lines().count(), 6);
    w.fails(2, &format!("{eval} --out r"), &["result.json", "--force"]);

    // Classes from the masks, one thread, a batch of one: the same numbers.
    let other = w.succeeds(&format!("{eval} --threads 1 --batch 1")).json();
    assert_eq!(other["rows"][1]["class"], "1");
    assert_eq!(other["rows"][2], rows[2]);
    // Coarse colours know the edges less well.
    let coarse = w.succeeds(&format!("{eval} --cell 4")).json();
    assert_eq!(coarse["settings"]["grid"], serde_json::json!([5, 6]));
    assert!(
        number(&coarse["rows"][2], "iou") < number(&rows[2], "iou"),
        "{coarse}"
    );
    let text = w
        .succeeds(&format!("{eval} --cell 4").replace("--json", ""))
        .stdout;
    assert!(text.contains("n_pixels") && text.contains("mean"), "{text}");
}

#[test]
fn depth_beats_the_mean() {
    let w = Workspace::new();
    scenes(&w, "train", 12, 24, 20);
    scenes(&w, "test", 5, 24, 20);
    let eval = format!("eval depth --model pixels --train-data train.csv --test-data test.csv {QUICK}");
    let result = w
        .succeeds(&format!("{eval} --max-depth 5 --bins 64 --out r"))
        .json();
    let (linear, mean) = (&result["rows"][0], &result["rows"][1]);
    assert_eq!(
        (&linear["head"], &mean["head"]),
        (&"linear".into(), &"mean".into())
    );
    assert!(number(linear, "rmse_high") < number(mean, "rmse_low"), "{result}");
    assert!(
        number(linear, "delta1_low") > number(mean, "delta1_high"),
        "{result}"
    );
    assert!(number(linear, "abs_rel") < number(mean, "abs_rel"), "{result}");
    assert!(names(&w.path("r")).contains(&"images.csv".to_owned()));
    // In the unit that the scale makes: half the range, twice the scale.
    let half = w
        .succeeds(&format!("{eval} --max-depth 2.5 --depth-scale 2000 --bins 64"))
        .json();
    let ratio = number(&half["rows"][1], "rmse") / number(mean, "rmse");
    assert!((ratio - 0.5).abs() < 1e-4, "{half}");

    w.fails(2, &format!("{eval} --max-depth 0"), &["max_depth"]);
    w.fails(2, &format!("{eval} --max-depth 0.5"), &["train depths", "0.5"]);
    w.fails(2, &format!("{eval} --depth-scale 0"), &["--depth-scale"]);
    w.fails(2, &format!("{eval} --bins 1"), &["bins"]);
}

#[test]
fn the_papers_training_is_requested_and_recorded() {
    let w = Workspace::new();
    scenes(&w, "train", 5, 24, 20);
    scenes(&w, "test", 2, 24, 20);
    let data = "--model pixels --train-data train.csv --test-data test.csv --bootstrap-resamples 0 --json";
    let run = |verb: &str| w.succeeds(&format!("eval {verb} {data}")).json();
    let segment = run("segment --protocol paper --iterations 5");
    let settings = &segment["settings"];
    assert_eq!(
        (
            &settings["protocol"],
            &settings["iterations"],
            &settings["selected_on"]
        ),
        (&"paper".into(), &5.into(), &"nothing: one learning rate".into())
    );
    assert_eq!(settings["learning_rate"], 0.001);
    assert!(
        settings["head"].as_str().expect("text").starts_with("batch norm"),
        "{settings}"
    );
    let depth = run("depth --protocol paper --iterations 5 --bins 8 --weight-decay 0.02");
    let settings = &depth["settings"];
    assert_eq!(
        (
            &settings["protocol"],
            &settings["learning_rate"],
            &settings["weight_decay"]
        ),
        (&"paper".into(), &0.0001.into(), &0.02.into())
    );
    assert!(
        settings["head"].as_str().expect("text").contains("as they are"),
        "{settings}"
    );
    // All nine measures, for the head and for the mean.
    for row in depth["rows"].as_array().expect("rows") {
        for name in [
            "rmse", "abs_rel", "delta1", "delta2", "delta3", "sq_rel", "rmse_log", "log10", "silog",
        ] {
            assert!(number(row, name) >= 0.0, "{row}");
        }
        assert!(number(row, "delta1") <= number(row, "delta2"), "{row}");
        assert!(number(row, "delta2") <= number(row, "delta3"), "{row}");
    }
    let fast = run("segment --iterations 5 --val-fraction 0.25");
    assert_eq!(
        (&fast["settings"]["protocol"], &fast["settings"]["selected_on"]),
        (&"fast".into(), &"train split 25 %".into())
    );
    let run = w.macula(&format!("eval depth --protocol papers {data}"));
    assert!(
        run.code == 2 && run.stderr.contains("fast or paper"),
        "{}",
        run.stderr
    );
}

/// Depths are 2 m inside a rectangle of rows and columns and 8 m outside; `nyu_NAME.txt` lists them.
fn rooms(w: &Workspace, name: &str, n: u32, rows: std::ops::Range<u32>, columns: std::ops::Range<u32>) {
    std::fs::create_dir_all(w.path(name)).expect("created");
    let mut list = String::new();
    for i in 0..n {
        let files = ["rgb", "depth"].map(|kind| format!("{name}/{kind}{i}.png"));
        RgbImage::from_fn(640, 480, |x, y| Rgb([(x / 3) as u8, (y / 2) as u8, 40 * i as u8]))
            .save(w.path(&files[0]))
            .expect("saved");
        let depth = |x, y| match rows.contains(&y) && columns.contains(&x) {
            true => 2000,
            false => 8000,
        };
        ImageBuffer::<Luma<u16>, Vec<u16>>::from_fn(640, 480, |x, y| Luma([depth(x, y)]))
            .save(w.path(&files[1]))
            .expect("saved");
        list += &format!("/{} /{} 518.8\n", files[0], files[1]);
    }
    w.write(&format!("nyu_{name}.txt"), list);
}

#[test]
fn nyu_is_scored_on_its_crop() {
    let w = Workspace::new();
    rooms(&w, "train", 2, 45..472, 43..608);
    rooms(&w, "test", 1, 45..471, 41..601);
    let quick = "--model pixels --cell 80 --iterations 2 --learning-rates 0.01 --bins 4 --bootstrap-resamples 0 --json";
    let eval = format!("eval depth --train-data nyu:.#train --test-data nyu:.#test {quick}");
    let run = |flags: &str| w.succeeds(&format!("{eval} {flags}")).json();
    let found = run("");
    let settings = &found["settings"];
    assert_eq!(
        (&settings["eval_crop"], &settings["train_crop"]),
        (&"eigen".into(), &"nyu-border".into())
    );
    // Nothing outside counts: the mean of the training depths is 2 and right everywhere.
    assert_eq!(settings["mean_depth"], 2.0);
    assert_eq!(number(&found["rows"][1], "rmse"), 0.0, "{found}");
    let all = run("--eval-crop none");
    assert_eq!(
        (&all["settings"]["eval_crop"], &all["settings"]["train_crop"]),
        (&"none".into(), &"none".into())
    );
    assert!(number(&all["rows"][1], "rmse") > 1.0, "{all}");
    let lower = run("--eval-crop garg");
    assert_eq!(lower["settings"]["eval_crop"], "garg");

    scenes(&w, "list", 4, 24, 20);
    let lists =
        format!("eval depth --train-data list.csv --test-data list.csv {quick}").replace("--cell 80", "");
    let none = w.succeeds(&lists).json();
    assert_eq!(none["settings"]["eval_crop"], "none");
    w.fails(
        2,
        &format!("{lists} --eval-crop eigen"),
        &["depth0.png", "640x480", "found 24x20"],
    );
    let run = w.macula(&format!("{lists} --eval-crop middle"));
    assert!(
        run.code == 2 && run.stderr.contains("none, eigen or garg"),
        "{}",
        run.stderr
    );
}

#[test]
fn networks_see_large_images_through_windows() {
    let w = Workspace::new();
    scenes(&w, "train", 6, 100, 70);
    scenes(&w, "test", 2, 90, 80);
    let checkpoint = golden("official_reg4.safetensors").display().to_string();
    w.succeeds(&format!(
        "export {checkpoint} --heads 3 --image-size 70 --outputs cls,patch,layer:0.patch,layer:1.patch --out m.onnx"
    ));
    let quick = QUICK.replace("--iterations 200", "--iterations 60");
    let data = format!("--train-data train.csv --test-data test.csv {quick}");
    let run = |model: &str| w.succeeds(&format!("eval segment --model {model} {data}")).json();
    let candle = run(&format!("{checkpoint} --heads 3 --crop 70"));
    let onnx = run("m.onnx");
    assert_eq!(onnx["settings"]["window"], serde_json::json!([70, 70]));
    assert_eq!(onnx["settings"]["grid"], serde_json::json!([5, 5]));
    assert_eq!(onnx["settings"]["stride"], serde_json::json!([47, 47]));
    // Each train image is 100 wide: two windows.
    assert_eq!(onnx["settings"]["train_windows"], 12);
    let difference = number(&candle["rows"][2], "iou") - number(&onnx["rows"][2], "iou");
    assert!(difference.abs() < 0.02, "{candle} {onnx}");
    assert_eq!(candle["rows"][2]["n_pixels"], 2 * 90 * 79);
    // Images as they are, smaller than the window or not, and other blocks.
    let native = run("m.onnx --resize 0 --layers 0,1 --stride 30");
    assert_eq!(
        native["settings"]["dim"],
        2 * onnx["settings"]["dim"].as_u64().expect("a number")
    );
    let depth = w
        .succeeds(&format!("eval depth --model m.onnx {data} --bins 16"))
        .json();
    assert_eq!(depth["settings"]["outputs"], serde_json::json!(["patch", "cls"]));

    let segment = format!("eval segment {data} --model");
    w.fails(
        2,
        &format!("{segment} m.onnx --layers 7"),
        &["m.onnx", "layer:7.patch"],
    );
    w.fails(
        2,
        &format!("{segment} m.onnx --layers last4"),
        &["m.onnx", "four blocks"],
    );
    w.fails(2, &format!("{segment} m.onnx --cell 2"), &["--cell"]);
    w.fails(2, &format!("{segment} m.onnx --stride 0"), &["--stride"]);
    w.fails(
        2,
        &format!("{segment} m.onnx --memory-gb 0.00001"),
        &["--memory-gb", "6 images"],
    );
    w.succeeds(&format!(
        "export {checkpoint} --heads 3 --image-size 70 --outputs cls --out cls.onnx"
    ));
    w.fails(2, &format!("{segment} cls.onnx"), &["cls.onnx", "patch"]);
}

#[test]
fn pairs_that_do_not_fit_are_named() {
    let w = Workspace::new();
    scenes(&w, "train", 8, 24, 20);
    scenes(&w, "test", 2, 24, 20);
    let eval = format!("eval segment --model pixels {QUICK}");
    let with = |train: &str, test: &str| format!("{eval} --train-data {train} --test-data {test}");
    let list = |name: &str, from: &str, replace: &str| {
        let text = std::fs::read_to_string(w.path("train.csv")).expect("read");
        assert!(text.contains(from), "{text}");
        w.write(name, text.replace(from, replace));
    };

    list("nomask.csv", "mask,", "other,");
    w.fails(
        2,
        &with("nomask.csv", "test.csv"),
        &["nomask.csv", "mask", "image0.png"],
    );
    list("hole.csv", "train/mask3.png", "");
    w.fails(
        2,
        &with("hole.csv", "test.csv"),
        &["hole.csv", "mask", "image3.png", "row 3"],
    );
    list("lost.csv", "train/mask2.png", "train/nowhere.png");
    w.fails(
        2,
        &with("train.csv", "lost.csv"),
        &["nowhere.png", "no such file", "image2.png"],
    );

    GrayImage::new(20, 24)
        .save(w.path("train/turned.png"))
        .expect("saved");
    list("size.csv", "train/mask1.png", "train/turned.png");
    w.fails(
        2,
        &with("size.csv", "test.csv"),
        &["turned.png", "24x20", "20x24"],
    );
    RgbImage::new(24, 20)
        .save(w.path("train/colours.png"))
        .expect("saved");
    list("rgb.csv", "train/mask1.png", "train/colours.png");
    w.fails(
        2,
        &with("rgb.csv", "test.csv"),
        &["colours.png", "one channel", "Rgb"],
    );

    let mut mask = GrayImage::new(24, 20);
    mask.put_pixel(5, 6, Luma([2]));
    mask.save(w.path("train/two.png")).expect("saved");
    list("range.csv", "train/mask1.png", "train/two.png");
    w.fails(
        2,
        &with("range.csv", "test.csv --classes 2"),
        &["two.png", "0 to 1", "found 2", "column 5, row 6"],
    );
    // A label that the training masks do not have.
    w.fails(2, &with("train.csv", "range.csv"), &["two.png", "found 2"]);
    w.fails(
        2,
        &with("train.csv", "test.csv --classes a,b,c"),
        &["class 2 (`c`)", "found none"],
    );
    w.succeeds(&with("train.csv", "test.csv --classes 3 --allow-empty-classes"));

    w.write("empty.csv", "image,mask\n");
    w.fails(2, &with("empty.csv", "test.csv"), &["empty.csv", "no rows"]);
    w.write("one.csv", "image,mask\ntrain/image0.png,train/mask0.png\n");
    w.fails(2, &with("one.csv", "test.csv"), &["val_fraction"]);
    w.fails(
        2,
        &with("voc:nowhere#train", "test.csv"),
        &["nowhere", "train.txt"],
    );
    for (flag, word) in [
        ("--classes 1", "--classes"),
        ("--iterations 0", "iterations"),
        ("--learning-rates 0", "learning_rates"),
        ("--train-batch 0", "batch_size"),
        ("--weight-decay 2", "weight_decay"),
        ("--cell 7", "--cell"),
        ("--batch 0", "--batch"),
        ("--memory-gb 0", "--memory-gb"),
        ("--layers 0,x", "0,x"),
    ] {
        let plain = "eval segment --model pixels --train-data train.csv --test-data test.csv";
        let run = w.macula(&format!("{plain} {flag}"));
        assert_eq!(run.code, 2, "{flag}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{flag}: {}", run.stderr);
    }

    // A row that cannot be read is left out where that is asked for.
    w.write("train/broken.png", "no image");
    list("broken.csv", "train/image1.png", "train/broken.png");
    w.fails(1, &with("broken.csv", "test.csv"), &["broken.png", "row 1"]);
    let run = w.succeeds(&with("broken.csv", "test.csv --on-error skip"));
    assert_eq!(run.json()["n_train"], 7);
    assert!(
        run.stderr.contains("1 of 8 images are left out"),
        "{}",
        run.stderr
    );
}
