//! Calls about a user as a whole, and about the devices that hold a copy.
//!
//! None of them does more when it is repeated, so that an error never leaves harm behind: call again.

use holdfast_model::limits::MESSAGE_BYTES_MAX;
use holdfast_wire::v1;
use holdfast_wire::v1::sync_service_client::SyncServiceClient;
use holdfast_wire::v1::user_service_client::UserServiceClient;
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::Error;
use crate::retry::Effect;

impl Client {
    /// Usage, newest version and what is backed up; linearizable unless a session or the caller says otherwise. A user
    /// that was never seen has zeros.
    ///
    /// # Errors
    /// When no node could answer.
    pub async fn user(&self, request: v1::GetUserRequest) -> Result<v1::GetUserResponse, Error> {
        let call = |channel, request| async move { users(channel).get_user(request).await };
        self.read_call(self.limits, request, call).await
    }

    /// Tells the server up to where a device has durably stored all changes. The first call registers the device; from
    /// then on the server keeps tombstones until it acknowledged them too. A cursor never goes back.
    ///
    /// # Errors
    /// `Precondition` `TOKEN_NOT_CURRENT` when the token cannot be continued: sync first. `Overloaded` `DEVICE_LIMIT`
    /// when the user has as many devices as are allowed: drop one.
    pub async fn ack_cursor(&self, user: &str, device: &str, sync_token: &str) -> Result<v1::AckCursorResponse, Error> {
        let (user_id, device_id, sync_token) = (user.to_owned(), device.to_owned(), sync_token.to_owned());
        let request = v1::AckCursorRequest { user_id, device_id, sync_token };
        let call = |channel, request| async move { sync(channel).ack_cursor(request).await };
        self.call(self.limits, Effect::Read, request, call).await
    }

    /// The devices of a user that hold tombstones back, by id.
    ///
    /// # Errors
    /// When no node could answer.
    pub async fn list_devices(&self, user: &str) -> Result<v1::ListDevicesResponse, Error> {
        let request = v1::ListDevicesRequest { user_id: user.to_owned() };
        let call = |channel, request| async move { sync(channel).list_devices(request).await };
        self.call(self.limits, Effect::Read, request, call).await
    }

    /// Forgets a device that will not come back, so that tombstones no longer wait for it. Dropping one that is not
    /// there succeeds.
    ///
    /// # Errors
    /// When no node could answer.
    pub async fn drop_device(&self, user: &str, device: &str) -> Result<v1::DropDeviceResponse, Error> {
        let request = v1::DropDeviceRequest { user_id: user.to_owned(), device_id: device.to_owned() };
        let call = |channel, request| async move { sync(channel).drop_device(request).await };
        self.call(self.limits, Effect::Read, request, call).await
    }
}

fn users(channel: Channel) -> UserServiceClient<Channel> {
    UserServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn sync(channel: Channel) -> SyncServiceClient<Channel> {
    SyncServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
