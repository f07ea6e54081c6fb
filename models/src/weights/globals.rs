//! The globals of a pickle that have a meaning: what makes tensors, names their element types, or is plain data.

use super::element::ElementType;

/// What a global stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// A dictionary, filled later or from a list of pairs.
    Dict,
    /// `_rebuild_tensor`, `_rebuild_tensor_v2`: storage, offset, sizes, strides, then flags; `_rebuild_tensor_v3`: the
    /// element type after two flags.
    Tensor,
    /// `_rebuild_parameter` and what else has a tensor as its first argument.
    Parameter,
    /// `_rebuild_from_type_v2`: a function, a type, the function's arguments, attributes.
    Subclass,
    /// `torch.Size`: a tuple.
    Size,
    /// A storage of this element type.
    Storage(StorageType),
    /// An element type.
    ElementType(StorageType),
    /// Makes a tensor that cannot be rebuilt from a storage, for this reason.
    Unreadable(&'static str),
    /// Data that no tensor depends on; its content is dropped.
    Data,
    /// Anything else: what it makes is an object.
    Other,
}

/// The elements of a storage: a type that is read, or the name and bytes of one that is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StorageType {
    Known(ElementType),
    Other(&'static str, usize),
}

impl StorageType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Known(element) => element.size(),
            Self::Other(_, size) => size,
        }
    }
}

impl std::fmt::Display for StorageType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(element) => element.fmt(f),
            Self::Other(name, _) => f.write_str(name),
        }
    }
}

/// Modules, the names in them, and what they stand for. Storages and element types have tables of their own.
const GLOBALS: &[(&[&str], &[&str], Global)] = &[
    (&["collections"], &["OrderedDict", "defaultdict"], Global::Dict),
    (
        &["torch._utils"],
        &["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"],
        Global::Tensor,
    ),
    (
        &["torch._utils", "torch.nn.parameter"],
        &[
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
            "Parameter",
            "Buffer",
        ],
        Global::Parameter,
    ),
    (
        &["torch._tensor", "torch.tensor", "torch._utils"],
        &["_rebuild_from_type", "_rebuild_from_type_v2"],
        Global::Subclass,
    ),
    (&["torch"], &["Size"], Global::Size),
    (
        &["torch._utils"],
        &["_rebuild_qtensor"],
        Global::Unreadable("it is quantised: save the network before quantisation"),
    ),
    (
        &["torch._utils"],
        &["_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor"],
        Global::Unreadable("it is sparse: save it with to_dense()"),
    ),
    (
        &["torch._utils"],
        &["_rebuild_nested_tensor"],
        Global::Unreadable("it is a nested tensor"),
    ),
    (
        &["torch._utils"],
        &["_rebuild_meta_tensor_no_storage"],
        Global::Unreadable("it was on the meta device, which keeps no numbers"),
    ),
    (
        &["torch._utils"],
        &[
            "_rebuild_device_tensor_from_numpy",
            "_rebuild_device_tensor_from_cpu_tensor",
            "_rebuild_xla_tensor",
        ],
        Global::Unreadable("it was on a device of its own: save it from the CPU"),
    ),
    (
        &["torch._utils"],
        &["_rebuild_wrapper_subclass"],
        Global::Unreadable("it is distributed or packed: save a full state dict of plain tensors"),
    ),
    (
        &["torch._subclasses.fake_tensor"],
        &["FakeTensor"],
        Global::Unreadable("it is a fake tensor, which has no numbers"),
    ),
    (
        &[
            "torch.distributed.tensor",
            "torch.distributed._tensor",
            "torch.distributed._tensor.api",
            "torch.distributed.tensor._api",
            "torch.distributed._shard.sharded_tensor.api",
        ],
        &["DTensor", "ShardedTensor"],
        Global::Unreadable("it is a part of a distributed tensor: save a full state dict"),
    ),
    (&["torch.storage"], &["_load_from_bytes"], Global::Data),
    (&["torch"], &["device"], Global::Data),
    (
        &["numpy.core.multiarray", "numpy._core.multiarray"],
        &["scalar", "_reconstruct"],
        Global::Data,
    ),
    (&["numpy"], &["dtype", "ndarray"], Global::Data),
    (&["_codecs"], &["encode"], Global::Data),
    (
        &["builtins", "__builtin__"],
        &[
            "set",
            "frozenset",
            "int",
            "float",
            "bool",
            "str",
            "bytes",
            "bytearray",
            "complex",
            "slice",
            "range",
        ],
        Global::Data,
    ),
];

/// Names of storages below `torch` and `torch.cuda`, of element types below `torch`, and what their elements are.
const ELEMENTS: &[(&str, &[&str], StorageType)] = &[
    (
        "DoubleStorage",
        &["float64", "double"],
        StorageType::Known(ElementType::F64),
    ),
    (
        "FloatStorage",
        &["float32", "float"],
        StorageType::Known(ElementType::F32),
    ),
    (
        "HalfStorage",
        &["float16", "half"],
        StorageType::Known(ElementType::F16),
    ),
    (
        "BFloat16Storage",
        &["bfloat16"],
        StorageType::Known(ElementType::Bf16),
    ),
    (
        "LongStorage",
        &["int64", "long"],
        StorageType::Known(ElementType::I64),
    ),
    (
        "IntStorage",
        &["int32", "int"],
        StorageType::Known(ElementType::I32),
    ),
    (
        "ShortStorage",
        &["int16", "short"],
        StorageType::Known(ElementType::I16),
    ),
    ("CharStorage", &["int8"], StorageType::Known(ElementType::I8)),
    ("ByteStorage", &["uint8"], StorageType::Known(ElementType::U8)),
    ("BoolStorage", &["bool"], StorageType::Known(ElementType::Bool)),
    ("", &["uint16"], StorageType::Known(ElementType::U16)),
    ("", &["uint32"], StorageType::Known(ElementType::U32)),
    ("", &["uint64"], StorageType::Known(ElementType::U64)),
    (
        "ComplexFloatStorage",
        &["complex64", "cfloat"],
        StorageType::Other("complex64", 8),
    ),
    (
        "ComplexDoubleStorage",
        &["complex128", "cdouble"],
        StorageType::Other("complex128", 16),
    ),
    ("QUInt8Storage", &["quint8"], StorageType::Other("quint8", 1)),
    ("QInt8Storage", &["qint8"], StorageType::Other("qint8", 1)),
    ("QInt32Storage", &["qint32"], StorageType::Other("qint32", 4)),
    (
        "QUInt4x2Storage",
        &["quint4x2"],
        StorageType::Other("quint4x2", 1),
    ),
    (
        "QUInt2x4Storage",
        &["quint2x4"],
        StorageType::Other("quint2x4", 1),
    ),
    ("UntypedStorage", &[], StorageType::Other("bytes", 1)),
];

impl Global {
    /// What the tables say of it.
    pub fn find(module: &str, name: &str) -> Self {
        if let Some((_, _, global)) = GLOBALS
            .iter()
            .find(|(modules, names, _)| modules.contains(&module) && names.contains(&name))
        {
            return *global;
        }
        let storage = matches!(module, "torch" | "torch.cuda" | "torch.storage") && name.ends_with("Storage");
        for (storages, types, element) in ELEMENTS {
            if storage && *storages == name {
                return Self::Storage(*element);
            }
            if module == "torch" && types.contains(&name) {
                return Self::ElementType(*element);
            }
        }
        Self::Other
    }
}
