//! How a Configuration's status follows its Revisions.

use jiff::Timestamp;

use super::ConfigurationStatus;
use crate::conditions::READY;
use crate::status::Status;

const REVISION_FAILED: &str = "RevisionFailed";

impl ConfigurationStatus {
    /// The newest Revision has that name. Unless it is also the newest ready one, it is waited for.
    pub fn set_latest_created_revision_name(&mut self, name: &str, now: Timestamp) {
        name.clone_into(&mut self.latest_created_revision_name);
        if self.latest_ready_revision_name != name {
            self.manage(now).mark_unknown(READY, "", "");
        }
    }

    /// The newest ready Revision has that name. The Configuration is ready if no newer one was made.
    pub fn set_latest_ready_revision_name(&mut self, name: &str, now: Timestamp) {
        name.clone_into(&mut self.latest_ready_revision_name);
        if self.latest_created_revision_name == name {
            self.manage(now).mark_true(READY);
        }
    }

    /// The newest Revision failed.
    pub fn mark_latest_created_failed(&mut self, name: &str, message: &str, now: Timestamp) {
        let message = format!("Revision {name:?} failed with message: {message}.");
        self.manage(now).mark_false(READY, REVISION_FAILED, &message);
    }

    /// The Revision could not be made.
    pub fn mark_revision_creation_failed(&mut self, message: &str, now: Timestamp) {
        let message = format!("Revision creation failed with message: {message}.");
        self.manage(now).mark_false(READY, REVISION_FAILED, &message);
    }

    /// The newest ready Revision is gone.
    pub fn mark_latest_ready_deleted(&mut self, now: Timestamp) {
        let message = format!("Revision {:?} was deleted.", self.latest_ready_revision_name);
        self.manage(now).mark_false(READY, "RevisionDeleted", &message);
    }
}
