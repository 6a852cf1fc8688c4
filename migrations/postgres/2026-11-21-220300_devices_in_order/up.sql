-- A tenant's devices in the order of their numbers, for lists.
CREATE INDEX CONCURRENTLY devices_tenant ON devices (tenant_no, device_no);
