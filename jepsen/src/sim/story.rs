//! Entries in words, for the trace of a failure.

use luc_engine::entry::{Header, LedgerOp, MemberOp};

/// What an entry says.
pub(super) fn entry(at: usize, header: &Header) -> String {
    let ledger = header.ledger.iter().map(|op| match op {
        LedgerOp::Mint { amount, .. } => format!("mints {amount}"),
        LedgerOp::Grow { pool, amount } => format!("grows {} by {amount}", short(pool)),
        LedgerOp::Burn { pool, amount } => format!("burns {amount} of {}", short(pool)),
        LedgerOp::Grant { pool, to, amount } => format!("grants {amount} of {} to {}", short(pool), short(to)),
        LedgerOp::Claim { pool, amount, .. } => format!("claims {amount} of {}", short(pool)),
        LedgerOp::Release { claim } => format!("releases {}", short(claim)),
        LedgerOp::DeclareDead { pool, .. } => format!("declares the host of {} dead", short(pool)),
        LedgerOp::Confirm { pool, to, .. } => format!("confirms a grant of {} to {}", short(pool), short(to)),
        LedgerOp::Inherit { pool, from } => format!("inherits {} from {}", short(pool), short(from)),
    });
    let members = header.members.iter().map(|op| match op {
        MemberOp::Join(member) => format!("admits {}", short(&member.replica)),
        MemberOp::Readdress { .. } => "has moved".into(),
        MemberOp::Revoke { replica } => format!("revokes {}", short(replica)),
        MemberOp::Retire(request) => format!("retires {} replicas", request.set.len()),
        MemberOp::Branched { retiree } => format!("holds two branches of {}", short(&retiree.replica)),
        MemberOp::Fork(fork) => format!("shows that {} forked", fork.author().map_or("nobody".into(), |id| short(&id))),
        MemberOp::Seal { set } => format!("seals {} replicas", set.len()),
        MemberOp::Assent { set } => format!("assents to the end of {} replicas", set.len()),
        MemberOp::Held => "says what it holds".into(),
    });
    let created =
        header.created.iter().map(|created| format!("creates {:?} {}", created.record.kind, created.record.id));
    let deleted = header.deleted.iter().map(|record| format!("deletes {:?} {}", record.kind, record.id));
    let stated = header.statements.iter().map(|statement| format!("notes that {} is gone", statement.server));
    let all: Vec<String> = members.chain(ledger).chain(created).chain(deleted).chain(stated).collect();
    let what = if all.is_empty() { "changes content".into() } else { all.join(", ") };
    format!("{at} WRITES {}: {what}", header.number)
}

/// The first letters of an id: enough to tell them apart in a story.
fn short(id: &impl std::fmt::Display) -> String {
    let text = id.to_string();
    let place = text.split_once(':').map_or("", |(_, place)| place);
    let head: String = text.chars().take(4).collect();
    if place.is_empty() { head } else { format!("{head}:{place}") }
}
