//! Writers of small model files, for tests. They share nothing with the readers; the integration tests use them too.

/// A GGUF file that is being written.
pub(crate) struct Gguf {
    version: u32,
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: u64,
}

impl Gguf {
    /// A file of version 3 for an architecture.
    pub(crate) fn new(architecture: &str) -> Gguf {
        let (keys, tensors) = (Vec::new(), Vec::new());
        let empty = Gguf { version: 3, keys, key_count: 0, tensors, tensor_count: 0, data: 0 };
        empty.text("general.architecture", architecture)
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Gguf {
        self.key_count += 1;
        self.keys.extend((key.len() as u64).to_le_bytes());
        self.keys.extend(key.as_bytes());
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self
    }

    /// A text.
    pub(crate) fn text(self, key: &str, text: &str) -> Gguf {
        let value = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        self.key(key, 8, &value)
    }

    /// A number of 32 bits.
    pub(crate) fn number(self, key: &str, number: u32) -> Gguf {
        self.key(key, 4, &number.to_le_bytes())
    }

    /// An array of numbers of 32 bits with a sign.
    pub(crate) fn numbers(self, key: &str, numbers: &[i32]) -> Gguf {
        let mut value = [&5u32.to_le_bytes()[..], &(numbers.len() as u64).to_le_bytes()].concat();
        numbers.iter().for_each(|number| value.extend(number.to_le_bytes()));
        self.key(key, 9, &value)
    }

    /// An array of so many texts.
    pub(crate) fn texts(self, key: &str, count: u32) -> Gguf {
        let mut value = [&8u32.to_le_bytes()[..], &u64::from(count).to_le_bytes()].concat();
        for number in 0..count {
            let text = format!("token {number}");
            value.extend((text.len() as u64).to_le_bytes());
            value.extend(text.as_bytes());
        }
        self.key(key, 9, &value)
    }

    /// A tensor of a type, of which all elements take so many bytes.
    pub(crate) fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, bytes: u64) -> Gguf {
        self.tensor_count += 1;
        self.tensors.extend((name.len() as u64).to_le_bytes());
        self.tensors.extend(name.as_bytes());
        self.tensors.extend(u32::try_from(dimensions.len()).expect("a few").to_le_bytes());
        dimensions.iter().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.data = self.data.div_ceil(32) * 32;
        self.tensors.extend(self.data.to_le_bytes());
        self.data += bytes;
        self
    }

    /// The header, and the length of the file with its data.
    pub(crate) fn header(&self) -> (Vec<u8>, u64) {
        let counts = [self.tensor_count.to_le_bytes(), self.key_count.to_le_bytes()].concat();
        let header = [b"GGUF", &self.version.to_le_bytes()[..], &counts, &self.keys, &self.tensors].concat();
        let begin = (header.len() as u64).div_ceil(32) * 32;
        (header, begin + self.data)
    }
}

/// A safetensors file: its header, and the length of the file with its data. Each tensor has a name, a dtype, a shape and
/// its bytes.
pub(crate) fn safetensors(tensors: &[(&str, &str, &[u64], u64)]) -> (Vec<u8>, u64) {
    let mut at = 0;
    let mut fields = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
    for (name, dtype, shape, bytes) in tensors {
        let end = at + bytes;
        fields.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#));
        at = end;
    }
    with_header(&format!("{{{}}}  ", fields.join(",")), at)
}

/// A safetensors file with this header and so many bytes of data.
pub(crate) fn with_header(header: &str, data: u64) -> (Vec<u8>, u64) {
    let size = header.len() as u64;
    ([&size.to_le_bytes()[..], header.as_bytes()].concat(), 8 + size + data)
}
