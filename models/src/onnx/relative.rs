//! The bias of attention by relative positions in the graph: a table for the grid of the images, and which of its rows belongs to
//! which pair of tokens. For one image size both are constants. For any size the graph makes the two matrices that resize the
//! table, once for all blocks, and the index by integer arithmetic on the grid.

use candle_core::Tensor;

use super::graph::{Graph, Value, int, ints};
use super::operators::cpu_f32;
use super::proto::DataType;
use crate::Result;
use crate::vit::{VitConfig, relative_index, resized_relative_table};

/// What the biases of all blocks have in common.
pub struct Relative {
    /// The row of each pair of tokens, [T, T].
    index: Value,
    size: Size,
}

/// For which images.
enum Size {
    /// Of this grid of patches.
    Fixed(usize, usize),
    /// Of any: the matrices that resize the rows and the columns of a table, [n, 2 M - 1].
    Dynamic([Value; 2]),
}

impl Relative {
    /// For a grid of rows and columns.
    pub fn fixed(graph: &mut Graph<'_>, rows: usize, columns: usize) -> Self {
        let tokens = 1 + rows * columns;
        let index: Vec<i64> = relative_index(rows, columns).into_iter().map(i64::from).collect();
        let index = graph.integers(&index);
        let square = graph.integers(&[tokens as i64, tokens as i64]);
        Self {
            index: graph.node("relative.index", "Reshape", &[&index, &square], vec![]),
            size: Size::Fixed(rows, columns),
        }
    }

    /// For the grid of `patches` `[B, D, rows, columns]`.
    pub fn dynamic(graph: &mut Graph<'_>, config: &VitConfig, patches: &Value) -> Self {
        let sides = graph.node("relative.grid", "Shape", &[patches], vec![int("start", 2)]);
        let source = 2 * config.native_grid() - 1;
        let [rows, columns] = [("rows", 0), ("columns", 1)].map(|(name, at)| {
            let at = graph.integer(at);
            graph.node(&format!("relative.{name}"), "Gather", &[&sides, &at], vec![])
        });
        let [one, two] = [1, 2].map(|value| graph.integer(value));
        let offsets = [("rows", &rows), ("columns", &columns)].map(|(name, side)| {
            let twice = graph.node(&format!("relative.{name}.twice"), "Mul", &[side, &two], vec![]);
            graph.node(
                &format!("relative.{name}.offsets"),
                "Sub",
                &[&twice, &one],
                vec![],
            )
        });
        let matrices = [("rows", &offsets[0]), ("columns", &offsets[1])]
            .map(|(name, count)| linear_matrix(graph, &format!("relative.{name}"), source, count));
        Self {
            index: index(graph, [&rows, &columns], &offsets),
            size: Size::Dynamic(matrices),
        }
    }

    /// The bias `[heads, T, T]` from the native `table` `[(2 M - 1)^2 + 3, heads]` of a block.
    pub fn bias<'a>(&self, graph: &mut Graph<'a>, name: &str, table: &'a Tensor) -> Result<Value> {
        let (entries, heads) = table.dims2()?;
        let values = |tensor: Tensor| -> Result<Vec<f32>> { Ok(cpu_f32(&tensor)?.flatten_all()?.to_vec1()?) };
        let table = match &self.size {
            Size::Fixed(rows, columns) => {
                let (rows, columns) = (*rows, *columns);
                let count = (2 * rows - 1) * (2 * columns - 1) + 3;
                graph.weight(&format!("{name}.table"), &[count, heads], move || {
                    values(resized_relative_table(&cpu_f32(table)?, rows, columns)?)
                })
            }
            Size::Dynamic([rows, columns]) => {
                let pairs = entries - 3;
                let side = pairs.isqrt();
                let native = graph.weight(&format!("{name}.native"), &[side, side * heads], move || {
                    values(table.narrow(0, 0, pairs)?)
                });
                let of_class = graph.weight(&format!("{name}.class"), &[3, heads], move || {
                    values(table.narrow(0, pairs, 3)?)
                });
                let named = |part: &str| format!("{name}.{part}");
                let resized = graph.node(&named("rows"), "MatMul", &[rows, &native], vec![]); // [rows, S heads]
                let shape = graph.integers(&[-1, side as i64, heads as i64]);
                let resized = graph.node(&named("unfolded"), "Reshape", &[&resized, &shape], vec![]);
                let resized = graph.node(&named("columns"), "MatMul", &[columns, &resized], vec![]); // [rows, columns, heads]
                let shape = graph.integers(&[-1, heads as i64]);
                let resized = graph.node(&named("pairs"), "Reshape", &[&resized, &shape], vec![]);
                graph.node(
                    &named("table"),
                    "Concat",
                    &[&resized, &of_class],
                    vec![int("axis", 0)],
                )
            }
        };
        let pairs = graph.node(
            &format!("{name}.pairs"),
            "Gather",
            &[&table, &self.index],
            vec![int("axis", 0)],
        );
        Ok(graph.node(name, "Transpose", &[&pairs], vec![ints("perm", &[2, 0, 1])]))
    }
}

/// Weights `[count, source]` of bilinear interpolation without antialias along one axis.
fn linear_matrix(graph: &mut Graph<'_>, name: &str, source: usize, count: &Value) -> Value {
    let named = |part: &str| format!("{name}.{part}");
    let float = vec![int("to", DataType::Float as i64)];
    let count = graph.node(&named("count"), "Cast", &[count], float);
    let mut number = |value: f32| graph.floats(&named("number"), &[], vec![value]);
    let [zero, half, one] = [0.0, 0.5, 1.0].map(&mut number);
    let (native, last) = (number(source as f32), number((source - 1) as f32));
    let step = graph.node(&named("step"), "Div", &[&native, &count], vec![]);
    let at = graph.node(&named("places"), "Range", &[&zero, &count, &one], vec![]);
    let at = graph.node(&named("centres"), "Add", &[&at, &half], vec![]);
    let at = graph.node(&named("scaled"), "Mul", &[&at, &step], vec![]);
    let at = graph.node(&named("moved"), "Sub", &[&at, &half], vec![]);
    let at = graph.node(&named("first"), "Max", &[&at, &zero], vec![]);
    let at = graph.node(&named("inside"), "Min", &[&at, &last], vec![]);
    let second = graph.integers(&[1]);
    let at = graph.node(&named("column"), "Unsqueeze", &[&at, &second], vec![]); // [count, 1]
    let sources = (0..source).map(|j| j as f32).collect();
    let sources = graph.floats(&named("sources"), &[1, source], sources);
    let away = graph.node(&named("difference"), "Sub", &[&at, &sources], vec![]);
    let away = graph.node(&named("distance"), "Abs", &[&away], vec![]);
    let falling = graph.node(&named("falling"), "Sub", &[&one, &away], vec![]);
    graph.node(&named("matrix"), "Relu", &[&falling], vec![])
}

/// The row of the table for each pair of tokens, [T, T], of a grid whose sides have so many `offsets`.
fn index(graph: &mut Graph<'_>, [rows, columns]: [&Value; 2], offsets: &[Value; 2]) -> Value {
    let [zero, one, two] = [0, 1, 2].map(|value| graph.integer(value));
    let [first, second] = [0, 1].map(|axis| graph.integers(&[axis]));
    let axis = |axis: i64| vec![int("axis", axis)];
    let named = |part: &str| format!("relative.index.{part}");
    let count = graph.node(&named("patches"), "Mul", &[rows, columns], vec![]);
    let places = graph.node(&named("places"), "Range", &[&zero, &count, &one], vec![]);
    let row = graph.node(&named("row"), "Div", &[&places, columns], vec![]);
    let before = graph.node(&named("before"), "Mul", &[&row, columns], vec![]);
    let column = graph.node(&named("column"), "Sub", &[&places, &before], vec![]);
    // How far the query is from the key, from 0.
    let mut apart = |name: &str, at: &Value, side: &Value| {
        let query = graph.node(
            &named(&format!("{name}.query")),
            "Unsqueeze",
            &[at, &second],
            vec![],
        ); // [N, 1]
        let key = graph.node(&named(&format!("{name}.key")), "Unsqueeze", &[at, &first], vec![]); // [1, N]
        let apart = graph.node(&named(&format!("{name}.apart")), "Sub", &[&query, &key], vec![]);
        let most = graph.node(&named(&format!("{name}.most")), "Sub", &[side, &one], vec![]);
        let apart = graph.node(&named(&format!("{name}.offset")), "Add", &[&apart, &most], vec![]);
        (apart, query, key)
    };
    let (down, query, key) = apart("rows", &row, rows);
    let (right, ..) = apart("columns", &column, columns);
    let down = graph.node(&named("lines"), "Mul", &[&down, &offsets[1]], vec![]);
    let pairs = graph.node(&named("pairs"), "Add", &[&down, &right], vec![]); // [N, N]
    // The rows of the class token follow those of pairs.
    let of_pairs = graph.node(&named("count"), "Mul", &[&offsets[0], &offsets[1]], vec![]);
    let mut constant = |name: &str, like: &Value, more: &Value| {
        let zeros = graph.node(&named(&format!("{name}.zeros")), "Mul", &[like, &zero], vec![]);
        let rows = graph.node(
            &named(&format!("{name}.zeroth")),
            "Add",
            &[&zeros, &of_pairs],
            vec![],
        );
        graph.node(&named(name), "Add", &[&rows, more], vec![])
    };
    let to_others = constant("class_to_others", &key, &zero); // [1, N]
    let of_others = constant("others_to_class", &query, &one); // [N, 1]
    let itself = graph.node(&named("class"), "Add", &[&of_pairs, &two], vec![]);
    let single = graph.integers(&[1, 1]);
    let itself = graph.node(&named("class_to_class"), "Reshape", &[&itself, &single], vec![]);
    let top = graph.node(&named("top"), "Concat", &[&itself, &to_others], axis(1));
    let rest = graph.node(&named("rest"), "Concat", &[&of_others, &pairs], axis(1));
    graph.node("relative.index", "Concat", &[&top, &rest], axis(0))
}
