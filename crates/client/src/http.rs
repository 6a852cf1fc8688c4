//! The HTTP twin: one request that pushes and pulls, instead of a connection.

use driftline_protocol::{Encoding, ErrorCode, ErrorMessage, Fault, Problem, SyncAnswer, SyncPost};

use crate::replica::Replica;
use crate::session::Link;

impl Replica {
    /// Makes the body of the next `POST /api/v1/sync`; nothing while a connection or another request is open.
    ///
    /// Requests are worth making until [`is_settled`](Self::is_settled). Each pushes at most one batch and pulls one
    /// page. Its answer goes to [`handle_http`](Self::handle_http); without one call
    /// [`handle_disconnected`](Self::handle_disconnected).
    pub fn http_request(&mut self) -> Option<String> {
        if self.session.link != Link::Offline {
            return None;
        }
        self.session.link = Link::Http;
        let batch = if self.may_push() { self.take_batch() } else { None };
        let (batch_seq, items) = batch.unwrap_or_default();
        let id = self.session.message_id();
        self.begin_page(id);
        let post = SyncPost {
            items: &items,
            batch_seq,
            acked_n: self.queue.acked_n(),
            epoch: self.epoch,
            data_types: &self.data_types,
            cursor: self.pull.cursor.as_deref(),
        };
        Some(post.encode())
    }

    /// Takes the answer to [`http_request`](Self::http_request) in.
    ///
    /// # Errors
    /// [`Fault`] when the answer is none of this protocol, and with the server's code when it refused the request.
    /// The edits stay queued and are sent again by the next request.
    pub fn handle_http(&mut self, status: u16, body: &[u8], now_ms: u64) -> Result<(), Fault> {
        if self.session.link != Link::Http {
            return Ok(());
        }
        if status == 410 && self.told_to_resync(body) {
            self.handle_disconnected();
            return Ok(());
        }
        let answer =
            if status == 200 { SyncAnswer::decode(Encoding::Json, body) } else { Err(refused(body)) };
        let applied = match answer {
            Ok(answer) => answer.ack.map_or(Ok(()), |ack| self.handle_ack(ack, now_ms)).map(|()| answer.rows),
            Err(fault) => Err(fault),
        };
        self.pull.in_flight = None;
        match applied {
            Ok(rows) => {
                self.apply_page(rows);
                let limits = self.session.limits;
                self.session.close();
                self.session.limits = limits;
                self.queue.forget_flight();
                Ok(())
            }
            Err(fault) => {
                self.take_refusal(&fault, now_ms);
                Err(fault)
            }
        }
    }

    /// Takes a refused request back. What was too large is smaller the next time, until a single edit is.
    fn take_refusal(&mut self, fault: &Fault, now_ms: u64) {
        if matches!(fault.code, ErrorCode::BatchTooLarge | ErrorCode::MessageTooLarge)
            && let Some(batch) = self.queue.answered(None)
        {
            self.refuse_batch(&batch, Some(fault.code), &ErrorMessage::new(fault, ""), now_ms);
        }
        let limits = self.session.limits;
        self.handle_disconnected();
        self.session.limits = limits;
    }

    /// A 410 tells how to go on, and the next request does so. Nothing was applied.
    fn told_to_resync(&mut self, body: &[u8]) -> bool {
        let Ok(Problem { reason: Some(reason), epoch, .. }) = Problem::decode(Encoding::Json, body) else {
            return false;
        };
        self.resync(reason, epoch.and_then(|epoch| epoch.parse().ok()));
        true
    }
}

fn refused(body: &[u8]) -> Fault {
    match Problem::decode(Encoding::Json, body) {
        Ok(problem) => {
            let code = ErrorCode::from_text(&problem.code).unwrap_or(ErrorCode::HandlerError);
            Fault::new(code, problem.detail)
        }
        Err(fault) => fault,
    }
}
