//! Edits of the order of a file's parts.

use rand::Rng as _;

use super::Rng;

/// Takes a part out, doubles it, moves it or exchanges two. `parts` is not empty.
pub fn edit<P: Clone>(parts: &mut Vec<P>, rng: &mut Rng) {
    let (from, to) = (rng.random_range(0..parts.len()), rng.random_range(0..parts.len()));
    match rng.random_range(0..4) {
        0 => drop(parts.remove(from)),
        1 => {
            let part = parts[from].clone();
            parts.insert(to, part);
        }
        2 => parts.swap(from, to),
        _ => parts.truncate(from),
    }
}
