//! How SQLite goes about the statements of the log.

use super::super::plans::{check, text};
use super::{devices, outbox, read, trim, write};

#[test]
fn every_statement_goes_straight_to_its_rows() {
    let (tenant_no, topic_no, above, through, limit) = (1, 1, 0, 9, 9);
    let any = String::new;
    let statements = [
        text(&read::LoadTopics { names: any(), tenant_no }),
        text(&read::OfTopic { tenant_no, topic_no, above, through, limit }),
        text(&read::RisingIds { topic_no, above, through, limit }),
        text(&read::FallingIds { topic_no, above, through, limit }),
        text(&read::ByIds { ids: any(), tenant_no }),
        text(&read::ByDedupe { tenant_no, key: any() }),
        text(&write::LoadDedupe { keys: any(), tenant_no }),
        text(&write::LoadVersions { things: any(), tenant_no }),
        text(&write::FindTopic { tenant_no, topic: any() }),
        text(&trim::LoadTopics { after: 0, limit }),
        text(&trim::FirstOfTopic { topic_no }),
        text(&trim::BehindNewest { topic_no, keep: 9 }),
        text(&trim::KeptFrom { tenant_no, from: 1 }),
        text(&trim::LastKept { tenant_no }),
        text(&trim::LoadStates { tenant_no, thing: any(), limit }),
        text(&devices::LoadFollowing { tenant_no, device_no: 1 }),
        text(&devices::LoadRead { ids: any(), tenant_no, sub: any() }),
        outbox::WAITING.to_owned(),
        outbox::CLEAN.to_owned(),
        super::watch::LOOK.to_owned(),
    ];
    check(&statements);
}
