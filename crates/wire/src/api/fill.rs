//! `FillPayloads`.

use holdfast_model::command::{Fill, FillPayloads};
use holdfast_model::id::{Collection, Incarnation, RecordId, RecordKey, Slot, Stage, Uid};
use holdfast_model::state::UserRef;

use super::Reader;
use crate::status::Refusal;
use crate::v1;

/// Reads a `FillPayloads`.
pub fn fill_payloads(request: v1::FillPayloadsRequest) -> Result<FillPayloads, Refusal> {
    let mut reader = Reader::default();
    let unknown = "is no stage of a restore: a well-known collection, or x-* for all custom ones";
    let stage = reader.take("stage", Stage::of_name(&request.stage).ok_or(unknown));
    let mut fills = Vec::with_capacity(request.fills.len());
    for (index, fill) in request.fills.into_iter().enumerate() {
        let slot = reader.take(format!("fills[{index}].slot"), u16::try_from(fill.slot));
        let collection = reader.take(format!("fills[{index}].collection"), Collection::new(&fill.collection));
        let record_id = reader.take(format!("fills[{index}].record_id"), RecordId::new(&fill.record_id));
        if let (Some(slot), Some(collection), Some(record_id)) = (slot, collection, record_id) {
            let user = UserRef { slot: Slot(slot), uid: Uid(fill.uid) };
            fills.push(Fill { user, key: RecordKey { collection, record_id }, payload: fill.payload });
        }
    }
    let (incarnation, through, ends) = (Incarnation(request.incarnation), request.through, request.ends);
    reader.finish(stage.map(|stage| FillPayloads { incarnation, stage, fills, through, ends }))
}
