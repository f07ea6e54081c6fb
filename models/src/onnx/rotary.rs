//! Rotary positions in the graph: the factors by which queries and keys are multiplied, and the five nodes that do it.
//!
//! With `x = [x1, x2]` the two halves of a head, what is turned is `x * [cos, cos] + [x2, x1] * [-sin, sin]`. For one image size
//! both factors are constants. For any size the graph computes the angles from the grid; it repeats nothing (`Tile`), which some
//! runtimes compile wrongly, but broadcasts.

use super::graph::{Graph, Value, int};
use super::proto::DataType;
use crate::Result;
use crate::vit::{RopeConfig, RopeGrid, VitConfig};

/// What queries and keys `[B, T, heads, d]` are multiplied by, each `[T, 1, d]`.
pub struct Factors {
    /// `[cos, cos]`, 1 for CLS and registers.
    straight: Value,
    /// `[-sin, sin]`, 0 for CLS and registers.
    crossed: Value,
}

impl Factors {
    /// Queries or keys `x` `[B, T, heads, d]`, turned.
    pub fn turn(&self, graph: &mut Graph<'_>, name: &str, x: &Value) -> Value {
        let named = |part: &str| format!("{name}.{part}");
        let [first, second] = graph.split(&named("halves"), x);
        let axis = vec![int("axis", -1)];
        let exchanged = graph.node(&named("exchanged"), "Concat", &[&second, &first], axis);
        let straight = graph.node(&named("straight"), "Mul", &[x, &self.straight], vec![]);
        let crossed = graph.node(&named("crossed"), "Mul", &[&exchanged, &self.crossed], vec![]);
        graph.node(&named("turned"), "Add", &[&straight, &crossed], vec![])
    }
}

/// The factors of a grid of rows and columns, as constants.
pub fn fixed(
    graph: &mut Graph<'_>,
    config: &VitConfig,
    rope: RopeConfig,
    grid: (usize, usize),
) -> Result<Factors> {
    let table = rope.table(config.head_dim(), config.prefix(), grid)?;
    let shape = [table.tokens(), 1, config.head_dim()];
    let both = |values: &[f32], sign: f32| -> Vec<f32> {
        let rows = values.chunks_exact(table.half());
        rows.flat_map(|row| {
            row.iter()
                .map(move |value| sign * value)
                .chain(row.iter().copied())
        })
        .collect()
    };
    Ok(Factors {
        straight: graph.floats("rotary.straight", &shape, both(table.cos(), 1.)),
        crossed: graph.floats("rotary.crossed", &shape, both(table.sin(), -1.)),
    })
}

/// The factors of the grid of `patches` `[B, D, rows, columns]`, computed by the graph.
pub fn dynamic(graph: &mut Graph<'_>, config: &VitConfig, rope: RopeConfig, patches: &Value) -> Factors {
    let (prefix, half) = (config.prefix(), config.head_dim() / 2);
    let quarter = half / 2;
    let frequencies = rope.frequencies(config.head_dim());
    let frequencies = frequencies
        .into_iter()
        .map(|frequency| frequency as f32)
        .collect();
    let frequencies = graph.floats("rotary.frequencies", &[quarter], frequencies);
    let sides = graph.node("rotary.grid", "Shape", &[patches], vec![int("start", 2)]);
    let last = graph.integers(&[quarter as i64]);
    let axis = |axis: i64| vec![int("axis", axis)];
    let full = graph.node("rotary.shape", "Concat", &[&sides, &last], axis(0)); // [rows, columns, d / 4]
    // The place's own axis of the grid, and the other two.
    let mut angles = |name: &str, index: i64, others: [i64; 2]| {
        let at = coordinates(graph, rope.grid, name, &sides, index); // [side]
        let others = graph.integers(&others);
        let at = graph.node(&format!("{name}.placed"), "Unsqueeze", &[&at, &others], vec![]);
        let angles = graph.node(&format!("{name}.angles"), "Mul", &[&at, &frequencies], vec![]);
        graph.node(&format!("{name}.grid"), "Expand", &[&angles, &full], vec![])
    };
    let rows = angles("rotary.rows", 0, [1, 2]);
    let columns = angles("rotary.columns", 1, [0, 2]);
    let both = match rope.columns_first() {
        true => [&columns, &rows],
        false => [&rows, &columns],
    };
    let angles = graph.node("rotary.both", "Concat", &both, axis(-1)); // [rows, columns, d / 2]
    let flat = graph.integers(&[-1, 1, half as i64]);
    let angles = graph.node("rotary.angles", "Reshape", &[&angles, &flat], vec![]); // [N, 1, d / 2]
    let mut of_tokens = |name: &str, function: &str, still: f32| {
        if prefix == 0 {
            return graph.node(name, function, &[&angles], vec![]); // [N, 1, d / 2]
        }
        let of_prefix = graph.floats(
            &format!("{name}.prefix"),
            &[prefix, 1, half],
            vec![still; prefix * half],
        );
        let of_patches = graph.node(&format!("{name}.patches"), function, &[&angles], vec![]);
        graph.node(name, "Concat", &[&of_prefix, &of_patches], axis(0)) // [T, 1, d / 2]
    };
    let cos = of_tokens("rotary.cos", "Cos", 1.);
    let sin = of_tokens("rotary.sin", "Sin", 0.);
    let negative = graph.node("rotary.sin.negative", "Neg", &[&sin], vec![]);
    Factors {
        straight: graph.node("rotary.straight", "Concat", &[&cos, &cos], axis(-1)),
        crossed: graph.node("rotary.crossed", "Concat", &[&negative, &sin], axis(-1)),
    }
}

/// The coordinates of the patches along the side at `index` of `sides`: of their centres from -1 to 1, `(2 i + 1) / n - 1`, or
/// counted, `(i + offset) / n * reference`.
fn coordinates(graph: &mut Graph<'_>, grid: RopeGrid, name: &str, sides: &Value, index: i64) -> Value {
    let named = |part: &str| format!("{name}.{part}");
    let index = graph.integer(index);
    let count = graph.node(&named("count"), "Gather", &[sides, &index], vec![]);
    let float = vec![int("to", DataType::Float as i64)];
    let count = graph.node(&named("side"), "Cast", &[&count], float);
    let (offset, factor) = match grid {
        RopeGrid::Centred => (0.5, 2.0),
        RopeGrid::Counted(grid) => (grid.offset as f32, grid.reference as f32),
    };
    let [zero, one, offset, factor] =
        [0.0, 1.0, offset, factor].map(|value| graph.floats(&named("number"), &[], vec![value]));
    let at = graph.node(&named("places"), "Range", &[&zero, &count, &one], vec![]);
    let at = graph.node(&named("centres"), "Add", &[&at, &offset], vec![]);
    let at = graph.node(&named("shares"), "Div", &[&at, &count], vec![]);
    let at = graph.node(&named("scaled"), "Mul", &[&at, &factor], vec![]);
    match grid {
        RopeGrid::Centred => graph.node(&named("coordinates"), "Sub", &[&at, &one], vec![]),
        RopeGrid::Counted(_) => at,
    }
}
