//! The table that is added to the tokens: CLS and register tokens with CLS's position code, then the position codes of
//! the patch grid, `[1, 1 + R + N, D]`.
//!
//! For one image size the table is a constant. For any size the graph makes the matrix that resizes one axis of the
//! native grid, once for rows and once for columns, from the cubic convolution kernel, and multiplies the native table
//! by both. ONNX's own `Resize` is not used: its cubic mode with antialias has no agreed edge rule.

use candle_core::Tensor;

use super::graph::{Graph, Value, int};
use super::operators::{Layers, cpu_f32};
use super::proto::DataType;
use crate::Result;
use crate::vit::{PositionRule, VitConfig, interpolate_grid};

/// Offset that the official rule adds to the grid size (DINOv2 `interpolate_offset`).
const OFFICIAL_OFFSET: f32 = 0.1;

/// The kernel parameter A of the cubic convolution: PyTorch's without antialias, Pillow's with. `None` for the linear kernel.
fn cubic_parameter(rule: PositionRule) -> Option<f32> {
    match rule {
        PositionRule::Official | PositionRule::HuggingFace => Some(-0.75),
        PositionRule::Registers => Some(-0.5),
        PositionRule::Bilinear => None,
    }
}

/// CLS and registers `[1, 1 + R, D]`, as far as the network has them; CLS takes the first position code of `position`
/// `[1, 1 + N, D]`, if there is any.
fn prefix(layers: &Layers<'_>, config: &VitConfig, position: Option<&Tensor>) -> Result<Option<Tensor>> {
    let mut tokens = Vec::new();
    if config.class_token {
        let mut cls = cpu_f32(layers.tensor("cls_token")?)?;
        if let Some(position) = position {
            cls = (cls + position.narrow(1, 0, 1)?)?;
        }
        tokens.push(cls);
    }
    if config.num_registers > 0 {
        tokens.push(cpu_f32(layers.tensor("register_tokens")?)?);
    }
    Ok(match tokens.is_empty() {
        true => None,
        false => Some(Tensor::cat(&tokens, 1)?),
    })
}

/// A constant with the values of a small tensor.
fn constant(graph: &mut Graph<'_>, name: &str, tensor: &Tensor) -> Result<Value> {
    let values = tensor.flatten_all()?.to_vec1()?;
    Ok(graph.floats(name, tensor.dims(), values))
}

/// The codes of patches `[1, M M, D]` in a table that may begin with one of CLS.
fn of_patches(config: &VitConfig, position: &Tensor) -> Result<Tensor> {
    Ok(position.narrow(1, config.class_tokens(), config.native_grid().pow(2))?)
}

/// The whole table for a grid of `rows` x `columns`, as a constant.
pub fn fixed(layers: &mut Layers<'_>, config: &VitConfig, rows: usize, columns: usize) -> Result<Value> {
    let position = cpu_f32(layers.tensor("pos_embed")?)?;
    let prefix = prefix(layers, config, Some(&position))?;
    let codes = of_patches(config, &position)?;
    let codes = interpolate_grid(&codes, config.position_rule, rows, columns)?; // [1, N, D]
    let all: Vec<Tensor> = prefix.into_iter().chain([codes]).collect();
    constant(&mut layers.graph, "token_table", &Tensor::cat(&all, 1)?)
}

/// CLS and registers, and zeros in the places of patches `[B, D, rows, columns]`: what is left without a table; nothing in a
/// network that has neither.
pub fn without_positions(
    layers: &mut Layers<'_>,
    config: &VitConfig,
    patches: &Value,
    grid: Option<(usize, usize)>,
) -> Result<Option<Value>> {
    let Some(prefix) = prefix(layers, config, None)? else {
        return Ok(None);
    };
    let graph = &mut layers.graph;
    let prefix = constant(graph, "prefix_tokens", &prefix)?;
    let pads = match grid {
        Some((rows, columns)) => graph.integers(&[0, 0, 0, 0, (rows * columns) as i64, 0]),
        None => {
            let sides = graph.node("grid", "Shape", &[patches], vec![int("start", 2)]);
            let count = graph.node("grid.patches", "ReduceProd", &[&sides], vec![int("keepdims", 1)]); // [1]
            let (before, after) = (graph.integers(&[0, 0, 0, 0]), graph.integers(&[0]));
            let axis = vec![int("axis", 0)];
            graph.node("prefix_tokens.pads", "Concat", &[&before, &count, &after], axis)
        }
    };
    Ok(Some(graph.node("token_table", "Pad", &[&prefix, &pads], vec![])))
}

/// The whole table for the grid of `patches` `[B, D, rows, columns]`, computed by the graph.
pub fn dynamic(layers: &mut Layers<'_>, config: &VitConfig, patches: &Value) -> Result<Value> {
    let (side, d) = (config.native_grid(), config.embed_dim);
    let position = cpu_f32(layers.tensor("pos_embed")?)?;
    let prefix = prefix(layers, config, Some(&position))?;
    let native = of_patches(config, &position)?.reshape((side, side * d))?;
    let graph = &mut layers.graph;
    let prefix = match &prefix {
        Some(prefix) => Some(constant(graph, "prefix_tokens", prefix)?),
        None => None,
    };
    let native = constant(graph, "pos_embed.grid", &native)?;
    let sides = graph.node("grid", "Shape", &[patches], vec![int("start", 2)]);
    let step_offset = step_offset(graph, config, &sides);
    let rows = resize_matrix(graph, config, "rows", &sides, 0, step_offset.as_ref()); // [rows, M]
    let columns = resize_matrix(graph, config, "columns", &sides, 1, step_offset.as_ref()); // [columns, M]
    let table = graph.node("pos_embed.rows", "MatMul", &[&rows, &native], vec![]); // [rows, M D]
    let shape = graph.integers(&[-1, side as i64, d as i64]);
    let table = graph.node("pos_embed.unfolded", "Reshape", &[&table, &shape], vec![]); // [rows, M, D]
    let table = graph.node("pos_embed.columns", "MatMul", &[&columns, &table], vec![]); // [rows, columns, D]
    let shape = graph.integers(&[1, -1, d as i64]);
    let table = graph.node("pos_embed.table", "Reshape", &[&table, &shape], vec![]); // [1, N, D]
    Ok(match prefix {
        Some(prefix) => graph.node("token_table", "Concat", &[&prefix, &table], vec![int("axis", 1)]),
        None => table,
    })
}

/// What is added to a grid side before the step is computed: a scalar, or `None` for rules that add nothing.
///
/// The native grid takes the table as it is: without the offset its step is 1 and its matrix the identity.
fn step_offset(graph: &mut Graph<'_>, config: &VitConfig, sides: &Value) -> Option<Value> {
    if config.position_rule != PositionRule::Official {
        return None;
    }
    let native = [config.native_grid() as i64; 2];
    let native = graph.integers(&native);
    let equal = graph.node("grid.equal", "Equal", &[sides, &native], vec![]);
    let first = graph.integer(0);
    let second = graph.integer(1);
    let rows = graph.node("grid.rows_equal", "Gather", &[&equal, &first], vec![]);
    let columns = graph.node("grid.columns_equal", "Gather", &[&equal, &second], vec![]);
    let native = graph.node("grid.native", "And", &[&rows, &columns], vec![]);
    let none = graph.floats("offset.native", &[], vec![0.0]);
    let some = graph.floats("offset.interpolated", &[], vec![OFFICIAL_OFFSET]);
    Some(graph.node("grid.offset", "Where", &[&native, &none, &some], vec![]))
}

/// The weights `[n, M]` that resize one axis of the native grid to the side at `index` of `sides`.
fn resize_matrix(
    graph: &mut Graph<'_>,
    config: &VitConfig,
    name: &str,
    sides: &Value,
    index: i64,
    offset: Option<&Value>,
) -> Value {
    let side = config.native_grid();
    let antialias = matches!(
        config.position_rule,
        PositionRule::Registers | PositionRule::Bilinear
    );
    let named = |part: &str| format!("{name}.{part}");
    let zero = graph.floats(&named("zero"), &[], vec![0.0]);
    let half = graph.floats(&named("half"), &[], vec![0.5]);
    let one = graph.floats(&named("one"), &[], vec![1.0]);
    let native = graph.floats(&named("native"), &[], vec![side as f32]);

    let index = graph.integer(index);
    let target = graph.node(&named("side"), "Gather", &[sides, &index], vec![]);
    let target = graph.node(
        &named("target"),
        "Cast",
        &[&target],
        vec![int("to", DataType::Float as i64)],
    );
    let divisor = match offset {
        Some(offset) => graph.node(&named("divisor"), "Add", &[&target, offset], vec![]),
        None => target.clone(),
    };
    let step = graph.node(&named("step"), "Div", &[&native, &divisor], vec![]);
    // Centres of the target cells in units of native cells: step (i + 1/2).
    let cells = graph.node(&named("cells"), "Range", &[&zero, &target, &one], vec![]);
    let cells = graph.node(&named("cells.half"), "Add", &[&cells, &half], vec![]);
    let centres = graph.node(&named("centres"), "Mul", &[&cells, &step], vec![]);
    let second = graph.integers(&[1]);
    let centres = graph.node(
        &named("centres.column"),
        "Unsqueeze",
        &[&centres, &second],
        vec![],
    ); // [n, 1]

    // Without antialias the four taps may lie up to two cells outside, where the edge cell stands for them.
    let margin = if antialias { 0 } else { 2 };
    let count = side + 2 * margin;
    let sources = (0..count).map(|j| j as f32 - margin as f32 + 0.5).collect();
    let sources = graph.floats(&named("sources"), &[1, count], sources);
    let difference = graph.node(&named("difference"), "Sub", &[&centres, &sources], vec![]);
    let mut distance = graph.node(&named("distance"), "Abs", &[&difference], vec![]); // [n, count]
    if antialias {
        let stretch = graph.node(&named("stretch"), "Max", &[&step, &one], vec![]);
        distance = graph.node(&named("stretched"), "Div", &[&distance, &stretch], vec![]);
    }
    let weights = match cubic_parameter(config.position_rule) {
        Some(a) => cubic_kernel(graph, name, &distance, a),
        None => linear_kernel(graph, name, &distance),
    };
    if antialias {
        // The window is cut at the border and what is left of it sums to 1.
        let axes = graph.integers(&[1]);
        let sum = graph.node(
            &named("sum"),
            "ReduceSum",
            &[&weights, &axes],
            vec![int("keepdims", 1)],
        );
        graph.node(&named("matrix"), "Div", &[&weights, &sum], vec![])
    } else {
        let fold = graph.floats(&named("fold"), &[count, side], fold_margin(side, margin));
        graph.node(&named("matrix"), "MatMul", &[&weights, &fold], vec![])
    }
}

/// The matrix `[side + 2 margin, side]` that adds weights of cells outside the grid to its edge cells.
fn fold_margin(side: usize, margin: usize) -> Vec<f32> {
    let mut fold = vec![0.0; (side + 2 * margin) * side];
    for row in 0..side + 2 * margin {
        let cell = row.saturating_sub(margin).min(side - 1);
        fold[row * side + cell] = 1.0;
    }
    fold
}

/// Cubic convolution (Keys 1981) of distances x >= 0 with parameter A: `((A+2)x - (A+3))x^2 + 1` up to 1,
/// `((Ax - 5A)x + 8A)x - 4A` up to 2, 0 beyond.
fn cubic_kernel(graph: &mut Graph<'_>, name: &str, x: &Value, a: f32) -> Value {
    let near = polynomial(
        graph,
        &format!("{name}.near"),
        x,
        &[a + 2.0, -(a + 3.0), 0.0, 1.0],
    );
    let far = polynomial(
        graph,
        &format!("{name}.far"),
        x,
        &[a, -5.0 * a, 8.0 * a, -4.0 * a],
    );
    let named = |part: &str| format!("{name}.kernel.{part}");
    let zero = graph.floats(&named("zero"), &[], vec![0.0]);
    let one = graph.floats(&named("one"), &[], vec![1.0]);
    let two = graph.floats(&named("two"), &[], vec![2.0]);
    let is_near = graph.node(&named("is_near"), "Less", &[x, &one], vec![]);
    let is_far = graph.node(&named("is_far"), "Less", &[x, &two], vec![]);
    let outer = graph.node(&named("outer"), "Where", &[&is_far, &far, &zero], vec![]);
    graph.node(&named("weights"), "Where", &[&is_near, &near, &outer], vec![])
}

/// `max(1 - x, 0)` of distances x >= 0.
fn linear_kernel(graph: &mut Graph<'_>, name: &str, x: &Value) -> Value {
    let named = |part: &str| format!("{name}.kernel.{part}");
    let one = graph.floats(&named("one"), &[], vec![1.0]);
    let falling = graph.node(&named("falling"), "Sub", &[&one, x], vec![]);
    graph.node(&named("weights"), "Relu", &[&falling], vec![])
}

/// A polynomial by Horner's rule, coefficients from the highest power down.
fn polynomial(graph: &mut Graph<'_>, name: &str, x: &Value, coefficients: &[f32]) -> Value {
    let mut result = graph.floats(&format!("{name}.coefficient"), &[], vec![coefficients[0]]);
    for &coefficient in &coefficients[1..] {
        let constant = graph.floats(&format!("{name}.coefficient"), &[], vec![coefficient]);
        let product = graph.node(&format!("{name}.product"), "Mul", &[&result, x], vec![]);
        result = graph.node(&format!("{name}.sum"), "Add", &[&product, &constant], vec![]);
    }
    result
}
