//! `macula serve` as clients see it: a process on a free port of this machine, spoken to in plain HTTP/1.1.

mod client;
mod hostile;
mod operation;
mod requests;
mod tls;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::harness::{Workspace, golden};

/// A small network, whose images are of 28 x 28.
fn model() -> String {
    model_of(28)
}

/// The same for images of `side` x `side`.
fn model_of(side: usize) -> String {
    format!(
        "--model tiny={} --heads 3 --resize {side} --crop {side} --device cpu --threads 2",
        golden("official_plain.safetensors").display()
    )
}

/// A PNG that differs from those of other numbers.
fn png(w: &Workspace, number: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(40, 36, |x, y| {
        image::Rgb([x * 6 + number, y * 7, (x * y + 31 * number) % 256].map(|level| (level % 256) as u8))
    });
    let path = w.path(&format!("images/{number:03}.png"));
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
    image.save(&path).expect("saved");
    std::fs::read(path).expect("read")
}

fn data_uri(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}
