"""Mapping GPU pages in an engine: import by descriptor, map into reserved address ranges."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vatt.errors import DriverError
from vatt.pages import Extent
from vattention.vmm.cuda_call import bindings, call, call_at_close
from vattention.vmm.cuda_device import check_cuda_page_size, find_device
from vattention.vmm.cuda_map import map_handles, read_write_access
from vattention.vmm.cuda_release import release_pages
from vattention.vmm.driver import HandleKind, Placement
from vattention.vmm.mapping_table import TableAnswers


class CudaMapping(TableAnswers):
    """The mapping half for a GPU. No call here needs a CUDA context.

    Misuse is refused by the table, see there. Invariant: `_handles` holds exactly the imported pages, each with the
    one reference that its import gave.
    """

    def __init__(self, uuid: str, page_size_bytes: int) -> None:
        self.device = find_device(uuid)
        check_cuda_page_size(self.device, page_size_bytes)
        self.page_size_bytes = page_size_bytes
        self._access = read_write_access(self.device)
        super().__init__(page_size_bytes)
        self._handles: dict[int, int] = {}

    def reserve(self, size_bytes: int) -> int:
        self._table.check_reserve(size_bytes)
        # CUDA aligns to powers of two only: the largest that divides the page size is the page size itself, as a rule.
        alignment_bytes = self.page_size_bytes & -self.page_size_bytes
        address = int(call("cuMemAddressReserve", size_bytes, alignment_bytes, 0, 0))
        self._table.add_reservation(address, size_bytes)
        return address

    def free(self, address: int, size_bytes: int) -> None:
        self._table.check_free(address, size_bytes)
        call("cuMemAddressFree", address, size_bytes)
        self._table.drop_reservation(address)

    def zone_fds(self) -> dict[int, int]:
        return {}

    def missing_fds(self, extent: Extent) -> list[int]:
        return list(extent.page_ids)

    def import_pages(self, extent: Extent, placement: Placement, fds: Sequence[int]) -> None:
        """The driver cannot be asked how large an imported page is: if vattd's word is wrong, mapping it fails."""
        self._table.check_import(extent)
        expected = Placement(HandleKind.POSIX_FD, self.page_size_bytes, 0)
        if placement != expected:
            raise DriverError(f"{extent} is at {placement}, not at {expected}", call="import_pages")
        if len(fds) != extent.page_count:
            raise DriverError(f"{extent} came with {len(fds)} descriptors", call="import_pages")
        posix_fd = bindings().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        handles: list[int] = []
        with ExitStack() as undo:
            for fd in fds:
                handles.append(int(call("cuMemImportFromShareableHandle", fd, posix_fd)))
                undo.callback(call, "cuMemRelease", handles[-1])
            undo.pop_all()
        self._handles.update(zip(extent.page_ids, handles, strict=True))
        self._table.add_import(extent)

    def release(self, extent: Extent) -> None:
        self._table.check_release(extent)
        try:
            release_pages(self._handles, extent)
        finally:
            for page_id in extent.page_ids:
                if page_id not in self._handles:
                    self._table.drop_import(Extent(page_id, 1))

    def map(self, address: int, extents: Sequence[Extent]) -> None:
        self._table.check_map(address, extents)
        handles = [self._handles[page_id] for extent in extents for page_id in extent.page_ids]
        map_handles(address, handles, self.page_size_bytes, self._access)
        self._table.add_mapped(address, extents)

    def unmap(self, address: int, size_bytes: int) -> list[Extent]:
        self._table.check_unmap(address, size_bytes)
        call("cuMemUnmap", address, size_bytes)
        return self._table.drop_mapped(address, size_bytes)

    def close(self) -> None:
        stretches, reservations = list(self._table.mapped_stretches()), self._table.reservations()
        self._table.close()
        refusals: list[DriverError] = []

        def goes(name: str, *args: object) -> bool:
            try:
                call_at_close(name, *args)
            except DriverError as refusal:
                refusals.append(refusal)
                return False
            return True

        mapped = [address for address, size_bytes in stretches if not goes("cuMemUnmap", address, size_bytes)]
        while self._handles:
            goes("cuMemRelease", self._handles.popitem()[1])
        for start, size_bytes in reservations:
            if not any(start <= address < start + size_bytes for address in mapped):
                goes("cuMemAddressFree", start, size_bytes)
        if refusals:
            raise refusals[0]
