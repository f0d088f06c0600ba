/* What pictures are made of: what each record waits for and holds, read in the order that snapshots.py needs.
 *
 * The answers are hidden from the garbage collector: thousands of them would make it go through the whole heap.
 */
#include "_core.h"

PyObject *
core_untracked(PyObject *Py_UNUSED(module), PyObject *value)
{
    if (PyObject_IS_GC(value) && PyObject_GC_IsTracked(value)) {
        PyObject_GC_UnTrack(value);
    }
    return Py_NewRef(value);
}

/* Hide a new tuple from the garbage collector: nothing in it leads back to it, and thousands of them would make the
 * collector go through the whole heap. */
static PyObject *
hidden(PyObject *tuple)
{
    if (tuple != NULL && PyObject_GC_IsTracked(tuple)) {
        PyObject_GC_UnTrack(tuple);
    }
    return tuple;
}

/* The pairs (cell, hold) of the locks that a record has, as a tuple. */
static PyObject *
read_held(Record *self)
{
    PyObject *pairs = PyList_New(0);
    for (Py_ssize_t i = 0; pairs != NULL && i < self->held_count; i++) {
        LockCell *cell = Lock_cell(self->held[i]);
        Py_XINCREF(cell);
        PyObject *hold = cell == NULL ? NULL : LockCell_hold(cell);
        int failed = hold == NULL;
        if (hold != NULL && hold != Py_None && PyTuple_GET_ITEM(hold, 0) == (PyObject *)self) {
            PyObject *pair = hidden(PyTuple_Pack(2, cell, hold));
            failed = pair == NULL || PyList_Append(pairs, pair) < 0;
            Py_XDECREF(pair);
        }
        Py_XDECREF(hold);
        Py_XDECREF(cell);
        if (failed) {
            Py_CLEAR(pairs);
        }
    }
    PyObject *result = pairs == NULL ? NULL : hidden(PyList_AsTuple(pairs));
    Py_XDECREF(pairs);
    return result;
}

/* (epoch, wait, hold that it waits for, held), in this order. */
static PyObject *
read_record(Record *self)
{
    uint64_t epoch = self->epoch;
    PyObject *wait = Record_waiting(self);
    PyObject *hold = NULL;
    if (wait == Py_None) {
        hold = Py_NewRef(Py_None);
    }
    else {
        PyObject *resource = Py_NewRef(((Wait *)wait)->resource);
        hold = Py_TYPE(resource) == CellType ? LockCell_hold_seen_by((LockCell *)resource, wait)
                                             : PyObject_CallMethod(resource, "hold_seen_by", "O", wait);
        Py_DECREF(resource);
    }
    PyObject *held = hold == NULL ? NULL : read_held(self);
    PyObject *result =
        held == NULL ? NULL : hidden(Py_BuildValue("(KOOO)", (unsigned long long)epoch, wait, hold, held));
    Py_XDECREF(held);
    Py_XDECREF(hold);
    Py_DECREF(wait);
    return result;
}

PyObject *
core_readings(PyObject *Py_UNUSED(module), PyObject *records)
{
    if (!PyList_Check(records)) {
        return PyErr_Format(PyExc_TypeError, "readings() takes a list of records");
    }
    PyObject *result = PyList_New(0);
    for (Py_ssize_t i = 0; result != NULL && i < PyList_GET_SIZE(records); i++) {
        PyObject *record = PyList_GET_ITEM(records, i);
        if (Py_TYPE(record) != RecordType) {
            PyErr_SetString(PyExc_TypeError, "readings() takes a list of records");
            Py_CLEAR(result);
            break;
        }
        PyObject *reading = read_record((Record *)record);
        if (reading == NULL || PyList_Append(result, reading) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(reading);
    }
    return result;
}
