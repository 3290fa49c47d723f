//! Protobuf written by hand, field by field: any bytes where text belongs, fields twice, fields that are none.

use bytes::Bytes;

/// A message being written.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// Length-delimited: text, bytes, messages.
    pub fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint_raw(u64::from(field) << 3 | 2);
        self.varint_raw(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// A message inside.
    pub fn message(self, field: u32, value: Self) -> Self {
        self.bytes(field, value.0)
    }

    /// A number; negative ones as protobuf has them.
    pub fn varint(mut self, field: u32, value: i64) -> Self {
        self.varint_raw(u64::from(field) << 3);
        self.varint_raw(value.cast_unsigned());
        self
    }

    /// Eight bytes.
    pub fn fixed64(mut self, field: u32, value: u64) -> Self {
        self.varint_raw(u64::from(field) << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn varint_raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// As it is sent.
    pub fn done(self) -> Bytes {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::v1;

    use super::*;

    #[test]
    fn what_is_written_by_hand_is_what_a_client_writes() {
        let key = Message::default().bytes(1, "contacts").bytes(2, "c1");
        let mutation = Message::default().message(1, key).message(3, Message::default());
        let message = Message::default().bytes(1, "ann").message(4, mutation).varint(5, 300).fixed64(7, 9).done();
        let typed = v1::BatchWriteRequest {
            user_id: "ann".into(),
            mutations: vec![v1::Mutation {
                key: Some(v1::RecordKey { collection: "contacts".into(), record_id: "c1".into() }),
                op: Some(v1::mutation::Op::Delete(v1::DeleteOp {})),
                precondition: None,
            }],
            if_head: Some(300),
            if_incarnation: 9,
            ..Default::default()
        };
        assert_eq!(holdfast_wire::encode(&typed), message);
        let negative = Message::default().varint(3, -1).done();
        assert_eq!(holdfast_wire::encode(&v1::ListRecordsRequest { page_size: -1, ..Default::default() }), negative);
    }
}
