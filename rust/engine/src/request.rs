//! The head of a request as the engine keeps it for the life of its exchange: the bytes the caller
//! sent and the view on them. The decision crate asks through this view; logs read from it; the
//! upstream's head is built from it, again for every try.

use meshfast_wire::h1::{Name, RequestHead};

/// See the module's text.
pub(crate) struct Request {
    pub(crate) head: RequestHead,
    pub(crate) bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self {
            head: RequestHead::new(),
            bytes: Vec::new(),
        })
    }

    pub(crate) fn header(&self, kind: Name) -> Option<&[u8]> {
        self.head.header(&self.bytes, kind)
    }

    pub(crate) fn authority_bytes(&self) -> &[u8] {
        self.head.authority.of(&self.bytes)
    }

    pub(crate) fn method_bytes(&self) -> &[u8] {
        self.head.method.of(&self.bytes)
    }

    pub(crate) fn path_bytes(&self) -> &[u8] {
        self.head.path_bytes(&self.bytes)
    }
}

impl meshfast_mesh::Request for Request {
    fn method(&self) -> &[u8] {
        self.method_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority_bytes()
    }

    fn scheme(&self) -> &[u8] {
        let scheme = self.head.scheme.of(&self.bytes);
        if scheme.is_empty() { b"http" } else { scheme }
    }

    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) {
        for header in &self.head.headers {
            if header
                .name
                .of(&self.bytes)
                .eq_ignore_ascii_case(name.as_bytes())
                && each(header.value.of(&self.bytes))
            {
                return;
            }
        }
    }
}
