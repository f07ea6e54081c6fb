//! A graph under construction: unique names, constants, nodes, inputs and outputs.

use std::collections::{BTreeMap, BTreeSet};

use super::proto::{
    AttributeProto, AttributeType, DataType, DimensionProto, DimensionValue, GraphProto, NodeProto,
    TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
};
use crate::{Error, Result};

/// A value of the graph: an input, a constant or the result of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(String);

/// One side of the shape of an input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A known size.
    Size(usize),
    /// A size known at run time only, by its symbol.
    Symbol(&'static str),
}

/// The values of a constant.
pub enum Data<'a> {
    /// Small 32-bit floats.
    Floats(Vec<f32>),
    /// Small 64-bit integers: shapes, axes, indices.
    Integers(Vec<i64>),
    /// 32-bit floats made when they are written, so that only one weight is in memory beside the network's own.
    Weight(Box<dyn Fn() -> Result<Vec<f32>> + 'a>),
    /// The same, stored in 16 bits.
    HalfWeight(Box<dyn Fn() -> Result<Vec<f32>> + 'a>),
    /// Signed 8-bit integers made when they are written.
    SmallIntegers(Box<dyn Fn() -> Result<Vec<i8>> + 'a>),
    /// A few unsigned bytes.
    Bytes(Vec<u8>),
}

/// A constant of the graph.
pub struct Initializer<'a> {
    /// Name.
    pub name: String,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub data: Data<'a>,
}

impl Initializer<'_> {
    /// Element type.
    pub fn data_type(&self) -> DataType {
        match self.data {
            Data::Integers(_) => DataType::Int64,
            Data::Floats(_) | Data::Weight(_) => DataType::Float,
            Data::HalfWeight(_) => DataType::Float16,
            Data::SmallIntegers(_) => DataType::Int8,
            Data::Bytes(_) => DataType::Uint8,
        }
    }

    /// Size of the values, in bytes.
    pub fn byte_len(&self) -> u64 {
        let width = match self.data {
            Data::Integers(_) => 8,
            Data::Floats(_) | Data::Weight(_) => 4,
            Data::HalfWeight(_) => 2,
            Data::SmallIntegers(_) | Data::Bytes(_) => 1,
        };
        self.shape.iter().product::<usize>() as u64 * width
    }

    /// The values as ONNX stores them: little-endian, row by row.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.byte_len() as usize);
        let mut floats = |values: &[f32]| {
            for value in values {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        };
        match &self.data {
            Data::Floats(values) => floats(values),
            Data::Weight(make) => floats(&make()?),
            Data::HalfWeight(make) => {
                for value in make()? {
                    let half = half::f16::from_f32(value);
                    if half.is_infinite() {
                        return Err(Error::config(
                            self.name.as_str(),
                            format!("expected values up to 65504 for f16, found {value}; f32 holds it"),
                        ));
                    }
                    bytes.extend_from_slice(&half.to_le_bytes());
                }
            }
            Data::SmallIntegers(make) => bytes.extend(make()?.into_iter().map(i8::cast_unsigned)),
            Data::Bytes(values) => bytes.extend_from_slice(values),
            Data::Integers(values) => {
                for value in values {
                    bytes.extend_from_slice(&value.to_le_bytes());
                }
            }
        }
        if bytes.len() as u64 != self.byte_len() {
            return Err(Error::config(
                self.name.as_str(),
                format!(
                    "expected {} bytes for shape {:?}, found {}",
                    self.byte_len(),
                    self.shape,
                    bytes.len()
                ),
            ));
        }
        Ok(bytes)
    }
}

/// An integer attribute.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i: Some(value),
        r#type: AttributeType::Int as i32,
        ..Default::default()
    }
}

/// A floating-point attribute.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        f: Some(value),
        r#type: AttributeType::Float as i32,
        ..Default::default()
    }
}

/// An attribute of a text.
pub fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        s: Some(value.into()),
        r#type: AttributeType::String as i32,
        ..Default::default()
    }
}

/// An attribute of several integers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ints: values.to_vec(),
        r#type: AttributeType::Ints as i32,
        ..Default::default()
    }
}

/// The graph as far as it is built. `'a` is the life of the weights that its constants are made from.
#[derive(Default)]
pub struct Graph<'a> {
    names: BTreeSet<String>,
    shared_integers: BTreeMap<(Vec<usize>, Vec<i64>), Value>,
    nodes: Vec<NodeProto>,
    initializers: Vec<Initializer<'a>>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<(Value, ValueInfoProto)>,
}

impl<'a> Graph<'a> {
    /// A float input of the graph.
    pub fn input(&mut self, name: &str, shape: &[Side]) -> Value {
        let name = self.unique(name);
        self.inputs.push(value_info(&name, shape));
        Value(name)
    }

    /// Makes a float value an output of the graph under `name`.
    pub fn output(&mut self, name: &str, value: &Value, shape: &[Side]) {
        let name = self.unique(name);
        self.outputs.push((value.clone(), value_info(&name, shape)));
    }

    /// A float constant whose values are at hand.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Value {
        self.initializer(name, shape, Data::Floats(values))
    }

    /// A float constant made when it is written.
    pub fn weight(&mut self, name: &str, shape: &[usize], make: impl Fn() -> Result<Vec<f32>> + 'a) -> Value {
        self.initializer(name, shape, Data::Weight(Box::new(make)))
    }

    /// A float constant made when it is written and stored in 16 bits, as a value of 32.
    pub fn half_weight(
        &mut self,
        name: &str,
        shape: &[usize],
        make: impl Fn() -> Result<Vec<f32>> + 'a,
    ) -> Value {
        let stored = self.initializer(&format!("{name}.f16"), shape, Data::HalfWeight(Box::new(make)));
        self.node(name, "Cast", &[&stored], vec![int("to", DataType::Float as i64)])
    }

    /// Signed 8-bit integers made when they are written.
    pub fn small_integers(
        &mut self,
        name: &str,
        shape: &[usize],
        make: impl Fn() -> Result<Vec<i8>> + 'a,
    ) -> Value {
        self.initializer(name, shape, Data::SmallIntegers(Box::new(make)))
    }

    /// One unsigned byte without dimensions.
    pub fn byte(&mut self, name: &str, value: u8) -> Value {
        self.initializer(name, &[], Data::Bytes(vec![value]))
    }

    /// A list of integers; equal lists are stored once.
    pub fn integers(&mut self, values: &[i64]) -> Value {
        self.shared(vec![values.len()], values)
    }

    /// A single integer without dimensions; equal ones are stored once.
    pub fn integer(&mut self, value: i64) -> Value {
        self.shared(Vec::new(), &[value])
    }

    /// Appends a node with one result and returns it.
    pub fn node(
        &mut self,
        name: &str,
        operator: &str,
        inputs: &[&Value],
        attributes: Vec<AttributeProto>,
    ) -> Value {
        let name = self.unique(name);
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: operator.into(),
            attribute: attributes,
            domain: String::new(),
        });
        Value(name)
    }

    /// Splits a value into `PARTS` equal parts along its last axis.
    pub fn split<const PARTS: usize>(&mut self, name: &str, value: &Value) -> [Value; PARTS] {
        let name = self.unique(name);
        let parts: [Value; PARTS] = std::array::from_fn(|part| Value(self.unique(&format!("{name}.{part}"))));
        self.nodes.push(NodeProto {
            input: vec![value.0.clone()],
            output: parts.iter().map(|part| part.0.clone()).collect(),
            name,
            op_type: "Split".into(),
            attribute: vec![int("axis", -1), int("num_outputs", PARTS as i64)],
            domain: String::new(),
        });
        parts
    }

    /// Tokens `from..to` of a sequence `[B, T, D]`.
    pub fn tokens(&mut self, name: &str, sequence: &Value, from: i64, to: i64) -> Value {
        let from = self.integers(&[from]);
        let to = self.integers(&[to]);
        let axes = self.integers(&[1]);
        self.node(name, "Slice", &[sequence, &from, &to, &axes], vec![])
    }

    /// Gives the outputs their names, and returns the graph without its constants, and the constants.
    pub fn finish(mut self, name: &str) -> (GraphProto, Vec<Initializer<'a>>) {
        let mut renamed: BTreeMap<String, String> = BTreeMap::new();
        for (value, info) in &self.outputs {
            let computed = self.nodes.iter().any(|node| node.output.contains(&value.0));
            if computed && !renamed.contains_key(&value.0) {
                renamed.insert(value.0.clone(), info.name.clone());
            } else {
                // Inputs, constants and values that are already an output keep their name.
                self.nodes.push(NodeProto {
                    input: vec![value.0.clone()],
                    output: vec![info.name.clone()],
                    name: info.name.clone(),
                    op_type: "Identity".into(),
                    ..Default::default()
                });
            }
        }
        for node in &mut self.nodes {
            for value in node.input.iter_mut().chain(&mut node.output) {
                if let Some(new) = renamed.get(value) {
                    value.clone_from(new);
                }
            }
        }
        let graph = GraphProto {
            node: self.nodes,
            name: name.into(),
            initializer: Vec::new(),
            input: self.inputs,
            output: self.outputs.into_iter().map(|(_, info)| info).collect(),
        };
        (graph, self.initializers)
    }

    fn shared(&mut self, shape: Vec<usize>, values: &[i64]) -> Value {
        let key = (shape, values.to_vec());
        if let Some(value) = self.shared_integers.get(&key) {
            return value.clone();
        }
        let value = self.initializer("integers", &key.0, Data::Integers(key.1.clone()));
        self.shared_integers.insert(key, value.clone());
        value
    }

    fn initializer(&mut self, name: &str, shape: &[usize], data: Data<'a>) -> Value {
        let name = self.unique(name);
        self.initializers.push(Initializer {
            name: name.clone(),
            shape: shape.to_vec(),
            data,
        });
        Value(name)
    }

    /// `hint`, or `hint_2`, `hint_3`, .. where that is taken.
    fn unique(&mut self, hint: &str) -> String {
        let mut name = hint.to_owned();
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{hint}_{count}");
        }
        name
    }
}

fn value_info(name: &str, shape: &[Side]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|side| DimensionProto {
            value: Some(match side {
                Side::Size(size) => DimensionValue::DimValue(*size as i64),
                Side::Symbol(symbol) => DimensionValue::DimParam((*symbol).into()),
            }),
        })
        .collect();
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(TypeValue::TensorType(TensorTypeProto {
                elem_type: DataType::Float as i32,
                shape: Some(TensorShapeProto { dim }),
            })),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_beyond_halves_are_refused_by_name() {
        let of = |value: f32| {
            let tensor = Initializer {
                name: "blocks.0.attn.qkv.weight".to_owned(),
                shape: vec![2],
                data: Data::HalfWeight(Box::new(move || Ok(vec![1.0, value]))),
            };
            tensor.bytes().map_err(|error| error.to_string())
        };
        assert_eq!(of(65504.0).unwrap(), [0x00, 0x3c, 0xff, 0x7b]);
        // Rounds to 65504.
        assert_eq!(of(65519.0).unwrap()[2..], [0xff, 0x7b]);
        for value in [65520.0, -1e6] {
            let error = of(value).unwrap_err();
            assert!(
                error.contains("blocks.0.attn.qkv.weight")
                    && error.contains(&format!("expected values up to 65504 for f16, found {value}")),
                "{error}"
            );
        }
    }

    #[test]
    fn names_are_unique_and_equal_integers_shared() {
        let mut graph = Graph::default();
        let x = graph.input("x", &[Side::Symbol("batch"), Side::Size(2)]);
        let a = graph.node("y", "Neg", &[&x], vec![]);
        let b = graph.node("y", "Neg", &[&a], vec![]);
        assert_ne!(a, b);
        let ones = graph.integers(&[1]);
        assert_eq!(ones, graph.integers(&[1]));
        assert_ne!(ones, graph.integer(1));
        assert_ne!(ones, graph.integers(&[1, 1]));
    }

    #[test]
    fn a_value_can_be_several_outputs_and_feed_nodes() {
        let mut graph = Graph::default();
        let x = graph.input("x", &[Side::Size(2)]);
        let y = graph.node("y", "Neg", &[&x], vec![]);
        let z = graph.node("z", "Neg", &[&y], vec![]);
        for (name, value) in [("first", &y), ("second", &y), ("third", &z), ("same", &x)] {
            graph.output(name, value, &[Side::Size(2)]);
        }
        let (graph, initializers) = graph.finish("test");
        assert!(initializers.is_empty());
        let edges: Vec<(&str, &str, &str)> = graph
            .node
            .iter()
            .map(|node| {
                (
                    node.op_type.as_str(),
                    node.input[0].as_str(),
                    node.output[0].as_str(),
                )
            })
            .collect();
        assert_eq!(
            edges,
            [
                ("Neg", "x", "first"),
                ("Neg", "first", "third"),
                ("Identity", "first", "second"),
                ("Identity", "x", "same"),
            ]
        );
        let outputs: Vec<&str> = graph.output.iter().map(|info| info.name.as_str()).collect();
        assert_eq!(outputs, ["first", "second", "third", "same"]);
    }

    #[test]
    fn a_weight_of_the_wrong_length_is_an_error() {
        let mut graph = Graph::default();
        graph.weight("w", &[2, 2], || Ok(vec![0.0; 3]));
        let (_, initializers) = graph.finish("test");
        let message = initializers[0].bytes().expect_err("three values").to_string();
        assert_eq!(message, "w: expected 16 bytes for shape [2, 2], found 12");
    }
}
